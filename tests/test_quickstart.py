"""The whole way at its smallest: the shipped policy acts, demonstrations and videos, training, evaluation, one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from padpolicy import cli, config, quickstart


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
    cfg = config.load("quickstart", [f"out='{out}'", "tasks=[open_drawer]", "train_steps=2", "threads=1"])
    quickstart.quickstart(cfg)
    results = json.loads((out / "results.json").read_text())
    for part, checkpoint in ((results, "tabletop"), (results["trained"], str(out / "work" / "run"))):
        assert part["checkpoint"] == checkpoint
        assert part["episodes"] == 1
        assert part["seed"] == cfg.seed
        assert part["ci95"][0] <= part["success_rate"] <= part["ci95"][1]
        assert set(part["latency_ms"]) >= {"p50", "p95"}
        assert len(part["episode_list_sha256"]) == 64
        assert part["tasks"] == {"open_drawer": part["tasks"]["open_drawer"]}
    assert results["trained"]["training"]["steps"] == 2
    page = (out / "index.html").read_text()
    assert "2 demonstrations" in page
    assert (out / results["trained"]["videos"][0]["file"]).is_file()
    assert (out / "work" / quickstart.MARK).is_file()
    assert str(out / "index.html") in capsys.readouterr().out


@pytest.mark.parametrize("file", ["thesis.tex", "work/thesis.tex"])
def test_a_folder_with_something_else_in_it_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("years of work")
    assert cli.main(["quickstart", f"out={tmp_path}"]) == 2
    assert "is not empty and not an earlier quickstart" in capsys.readouterr().err
    assert (tmp_path / file).read_text() == "years of work"
    assert not list(tmp_path.rglob(quickstart.MARK))
