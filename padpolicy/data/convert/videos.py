"""folder of video files."""

from __future__ import annotations

from pathlib import Path

NAME = "folder of video files"


def recognises(path: Path) -> bool:
    return False
