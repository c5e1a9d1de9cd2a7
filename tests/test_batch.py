"""The contract: absence, stacking, and draws that belong to a sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import batch_of, robot_sample, video_sample

from padpolicy import draws
from padpolicy.batch import collate, present
from padpolicy.sample import Sample


def test_what_is_absent_says_so():
    batch = batch_of(robot_sample(0), video_sample(1))
    assert batch.has["action"].tolist() == [True, False]
    assert batch.has["text"].tolist() == [True, False]
    assert batch.is_pad["action"][1].all()
    assert batch.robot == ["arm", ""]
    assert "action" in batch.describe() and "50%" in batch.describe()


def test_selecting_is_collating_fewer():
    samples = [robot_sample(0), video_sample(1, "look"), robot_sample(2)]
    one, two = batch_of(*samples).select(torch.tensor([2, 0])), batch_of(samples[2], samples[0])
    assert one.text == two.text and one.index.tolist() == [2, 0]
    for name in two.fields:
        assert torch.equal(one.fields[name], two.fields[name])


def test_shapes_of_one_field_must_agree():
    one = Sample(fields={"obs.rgb_front": np.zeros((1, 8, 8, 3), np.uint8)})
    two = Sample(fields={"obs.rgb_front": np.zeros((1, 16, 8, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"'obs.rgb_front': sample 1 is uint8\(1, 16, 8, 3\).*data.image_size"):
        collate([one, two])


def test_present_stops_nan():
    x = torch.tensor([[float("nan"), 1.0], [2.0, 3.0]])
    assert present(x, torch.tensor([False, True])).tolist() == [[0, 0], [2, 3]]


def test_draws_are_a_function_of_their_key():
    index = torch.tensor([5, 2, 9])
    one = draws.normal(1, 10, index, "noise", (4,))
    two = draws.normal(1, 10, index.flip(0), "noise", (4,))
    assert torch.equal(one, two.flip(0))
    for other in (
        draws.normal(2, 10, index, "noise", (4,)),
        draws.normal(1, 11, index, "noise", (4,)),
        draws.normal(1, 10, index, "other", (4,)),
        draws.normal(1, 10, index + 1, "noise", (4,)),
    ):
        assert not torch.isclose(one, other).any()
    many = draws.normal(0, 0, torch.arange(200), "noise", (100,))
    assert abs(many.mean()) < 0.03 and abs(many.std() - 1) < 0.03
    u = draws.uniform(0, 0, torch.arange(5000), "u")
    assert u.shape == (5000,) and 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.02
