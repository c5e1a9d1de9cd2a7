"""robomimic HDF5."""

from __future__ import annotations

from pathlib import Path

NAME = "robomimic HDF5"


def recognises(path: Path) -> bool:
    return False
