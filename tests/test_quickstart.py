"""The whole way at its smallest: the shipped policy acts, demonstrations and videos, training, evaluation, one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from padpolicy import config, quickstart


def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {
        "DEMONSTRATIONS": 2,
        "WATCHED": ["touch_blue_cube"],
        "VIDEOS_PER_TASK": 1,
        "EPISODES": 1,
        "FILMS": 1,
    }.items():
        monkeypatch.setattr(quickstart, name, value)
    out = tmp_path / "a page"
    cfg = config.load("quickstart", [f"out='{out}'", "tasks=[touch_red_cube]", "train_steps=2", "threads=1"])
    quickstart.quickstart(cfg)
    results = json.loads((out / "results.json").read_text())
    for part, checkpoint in ((results, "tabletop"), (results["trained"], str(out / "work" / "run"))):
        assert part["checkpoint"] == checkpoint
        assert part["episodes"] == 1
        assert part["seed"] == cfg.seed
        assert part["ci95"][0] <= part["success_rate"] <= part["ci95"][1]
        assert set(part["latency_ms"]) >= {"p50", "p95"}
        assert len(part["episode_list_sha256"]) == 64
        assert part["tasks"] == {"touch_red_cube": part["tasks"]["touch_red_cube"]}
    assert results["trained"]["training"]["steps"] == 2
    page = (out / "index.html").read_text()
    assert "2 demonstrations" in page
    assert (out / results["trained"]["videos"][0]["file"]).is_file()
    assert str(out / "index.html") in capsys.readouterr().out


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(config.ConfigError, match="is not empty and not an earlier quickstart"):
        quickstart.quickstart(config.load("quickstart", [f"out={tmp_path}"]))
    assert (tmp_path / "thesis.tex").is_file()
