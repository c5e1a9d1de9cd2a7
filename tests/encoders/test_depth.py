from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from padpolicy.encoders.depth import DepthScale, reduce_depth


def u16(values) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.uint16))


def test_takes_the_valid_pixel_nearest_to_the_centre() -> None:
    cell = np.full((5, 5), 900, np.uint16)
    cell[2, 2] = 0  # the centre itself is a hole
    cell[2, 3] = 700
    cell[2, 1] = cell[1, 2] = cell[3, 2] = 0
    mm, valid = reduce_depth(u16(cell), 1)
    assert mm.tolist() == [[700.0]] and valid.tolist() == [[True]]


def test_a_cell_of_holes_is_invalid_and_zero() -> None:
    depth = np.full((4, 4), 500, np.uint16)
    depth[:2, 2:] = 0
    mm, valid = reduce_depth(u16(depth), 2)
    assert mm.tolist() == [[500.0, 0.0], [500.0, 500.0]]
    assert valid.tolist() == [[True, False], [True, True]]


def test_far_readings_do_not_wrap() -> None:
    assert reduce_depth(u16([[65535]]), 1)[0].item() == 65535.0


@given(st.integers(0, 2**32 - 1))
def test_law_every_output_is_a_reading_of_its_own_cell(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = rng.integers(1, 3000, (2, 3, 12, 12), np.uint16) * (rng.random((2, 3, 12, 12)) < 0.3).astype(np.uint16)
    mm, valid = reduce_depth(u16(depth), 3)
    assert mm.shape == valid.shape == (2, 3, 3, 3)
    cells = depth.reshape(2, 3, 3, 4, 3, 4).swapaxes(3, 4).reshape(2, 3, 3, 3, 16)
    assert np.array_equal(valid.numpy(), (cells > 0).any(-1))
    assert (cells == mm.numpy()[..., None]).any(-1)[valid.numpy()].all()


def test_refuses_a_size_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="10 x 10 pixels does not reduce to 3 x 3"):
        reduce_depth(u16(np.ones((10, 10))), 3)


def test_statistics_leave_holes_out_and_travel_as_json() -> None:
    scale = DepthScale.fit([np.array([[0, 400], [600, 0]], np.uint16), np.array([[500]], np.uint16)])
    assert scale.mean_mm == 500.0 and scale.std_mm == pytest.approx(np.std([400, 600, 500]))
    assert DepthScale.from_json(json.loads(json.dumps(scale.to_json()))) == scale


def test_statistics_of_nothing_and_of_a_wall_are_harmless() -> None:
    assert DepthScale.fit([]) == DepthScale.fit([np.zeros((2, 2), np.uint16)]) == DepthScale(0.0, 1.0)
    assert DepthScale.fit([np.full((4, 4), 800, np.uint16)]) == DepthScale(800.0, 1.0)


def test_standardise_and_restore() -> None:
    scale = DepthScale(700.0, 120.0)
    mm = torch.tensor([460.0, 700.0, 820.0])
    assert scale.standardise(mm).tolist() == [-2.0, 0.0, 1.0]
    torch.testing.assert_close(scale.restore(scale.standardise(mm)), mm)
