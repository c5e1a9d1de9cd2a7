"""Letterbox: shapes, borders, values."""

import numpy as np

from padpolicy.data.letterbox import letterbox


def test_wide_pictures_get_black_bars_above_and_below():
    out = letterbox(np.full((2, 10, 20, 3), 200, np.uint8), 8)
    assert out.shape == (2, 8, 8, 3)
    assert (out[:, 2:6] == 200).all() and (out[:, :2] == 0).all() and (out[:, 6:] == 0).all()


def test_depth_takes_values_that_exist():
    depth = np.where(np.arange(12)[:, None] < 6, 500, 2000).astype(np.uint16) * np.ones((12, 6), np.uint16)
    out = letterbox(depth, 4)
    assert out.dtype == np.uint16 and set(np.unique(out)) == {0, 500, 2000}
    assert (out[:, 0] == 0).all() and (out[:2, 1:3] == 500).all() and (out[2:, 1:3] == 2000).all()


def test_the_right_size_is_left_alone():
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    assert letterbox(frames, 8) is frames
