"""RLDS tfrecords (Open X-Embodiment)."""

from __future__ import annotations

from pathlib import Path

NAME = "RLDS tfrecords (Open X-Embodiment)"


def recognises(path: Path) -> bool:
    return False
