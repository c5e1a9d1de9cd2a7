"""ReplayBuffer zarr (diffusion_policy)."""

from __future__ import annotations

from pathlib import Path

NAME = "ReplayBuffer zarr (diffusion_policy)"


def recognises(path: Path) -> bool:
    return False
