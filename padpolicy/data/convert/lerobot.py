"""LeRobotDataset v2.1 or v3.0."""

from __future__ import annotations

from pathlib import Path

NAME = "LeRobotDataset v2.1 or v3.0"


def recognises(path: Path) -> bool:
    return False
