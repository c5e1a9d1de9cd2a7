"""Pictures of any size and aspect ratio onto a square: scaled to fit, centred, the rest black (depth: 0, invalid)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def letterbox(frames: np.ndarray, size: int) -> np.ndarray:
    """(..., H, W, 3) uint8 rgb, or (..., H, W) uint16 depth, as (..., size, size[, 3]) of the same dtype.

    Colours are averaged over the area a pixel covers. Depth takes the nearest value: a mean of two depths is a
    surface that does not exist.
    """
    is_rgb = frames.dtype == np.uint8
    inner = frames.ndim - (3 if is_rgb else 2)
    height, width = frames.shape[inner : inner + 2]
    if (height, width) == (size, size):
        return frames
    shrink = size / max(height, width)
    new_height, new_width = max(round(height * shrink), 1), max(round(width * shrink), 1)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    flat = frames.reshape(-1, *frames.shape[inner:])
    out = np.zeros((len(flat), size, size, *frames.shape[inner + 2 :]), frames.dtype)
    place = out[:, top : top + new_height, left : left + new_width]
    if is_rgb:
        from PIL import Image

        for row, frame in zip(place, flat, strict=True):
            row[:] = np.asarray(Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BILINEAR))
    else:
        rows = ((np.arange(new_height) + 0.5) * height / new_height).astype(int)
        columns = ((np.arange(new_width) + 0.5) * width / new_width).astype(int)
        place[:] = flat[:, rows[:, None], columns[None]]
    return out.reshape(*frames.shape[:inner], *out.shape[1:])


def fitted(observation: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The observation with its pictures (`rgb_<cam>`, `depth_<cam>`) letterboxed to `size`, as training has seen them."""
    return {
        name: letterbox(value, size) if name.startswith(("rgb_", "depth_")) else value
        for name, value in observation.items()
    }
