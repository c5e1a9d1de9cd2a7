"""Depth without an autoencoder: reduced by nearest valid pixels, standardised, invalid pixels marked.

Letters: H W image size, S reduced side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def reduce_depth(depth_HW: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Depth (..., H, W) uint16 mm, 0 = invalid -> (mm (..., S, S) float32, valid (..., S, S) bool).

    Every reduced pixel takes the valid pixel of its cell that is nearest to the cell's centre; a cell without one is
    invalid and 0. No mean is taken: the mean of an edge is a surface that does not exist.

    Raises:  ValueError if H or W is not a multiple of size.
    """
    *lead, height, width = depth_HW.shape
    if height % size or width % size:
        raise ValueError(
            f"depth of {height} x {width} pixels does not reduce to {size} x {size}: expected multiples of {size}"
        )
    cell_h, cell_w = height // size, width // size
    cells = depth_HW.view(torch.int16).reshape(-1, size, cell_h, size, cell_w).transpose(2, 3).flatten(3)
    cells = cells[..., _from_centre(cell_h, cell_w, cells.device)]
    valid = cells != 0
    first = valid.to(torch.uint8).argmax(-1, keepdim=True)
    value = cells.gather(-1, first)[..., 0].to(torch.int32) & 0xFFFF  # back to unsigned
    return value.float().reshape(*lead, size, size), valid.any(-1).reshape(*lead, size, size)


@lru_cache(maxsize=64)
def _from_centre(height: int, width: int, device: torch.device) -> Tensor:
    """The pixels of a cell by their distance from its centre, nearest first: indices (height * width,)."""
    y = torch.arange(height) - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    return (y[:, None] ** 2 + x[None] ** 2).flatten().argsort(stable=True).to(device)


@dataclass(frozen=True)
class DepthScale:
    """mm <-> about unit variance over the workspace. Travels with the policy."""

    mean_mm: float = 0.0
    std_mm: float = 1.0

    @classmethod
    def fit(cls, frames: Sequence[np.ndarray]) -> DepthScale:
        """Args: frames: arrays (N, H, W) uint16 mm. Without any valid pixel the scale is (0, 1) mm."""
        valid = [frame[frame > 0].astype(np.float64) for frame in frames]
        values = np.concatenate(valid) if valid else np.zeros(0)
        if not len(values):
            return cls()
        return cls(float(values.mean()), float(max(values.std(), 1.0)))

    def standardise(self, mm: Tensor) -> Tensor:
        return (mm - self.mean_mm) / self.std_mm

    def restore(self, x: Tensor) -> Tensor:
        """Standardised depth -> mm."""
        return x * self.std_mm + self.mean_mm

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, float]) -> DepthScale:
        return cls(**values)
