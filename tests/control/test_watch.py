"""The monitor's process: it says why it cannot start, and never makes the loop wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from padpolicy.config import MonitorConfig
from padpolicy.control.planner import BrainError
from padpolicy.control.watch import Watch


def test_without_thresholds_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BrainError, match="Calibrate"):
        Watch("tabletop", MonitorConfig(thresholds=str(tmp_path / "none.json")), "cpu")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(BrainError, match=r"thresholds of a monitor"):
        Watch("tabletop", MonitorConfig(thresholds=str(tmp_path / "bad.json")), "cpu")
