"""Studies: one that was killed goes on, nothing is run twice, and the table says what the cells say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from padpolicy.bench import curves
from padpolicy.bench import study as ablate
from padpolicy.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import ablate as script  # noqa: E402

STUDY = """
common: [experiment=tiny]
updates: 2
seeds: [3]
evaluate: ["tasks=[open_drawer,touch_red_cube]", env.max_steps=2, episodes_per_task=1, env_workers=1, videos=0]
base: base
arms:
  base: {why: all of it}
  often: {why: one step of each plan, policy: base, evaluate: [exec_steps=1]}
"""


def study_file(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["ablate.py", *map(str, arguments)])
    script.main()


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_and_runs_nothing_twice(tmp_path, monkeypatch, capfd):
    path, out = study_file(tmp_path), tmp_path / "out"
    command = [sys.executable, ROOT / "scripts" / "ablate.py", path, "--out", out, "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        while not (out / "base-3" / "run" / "config.json").exists():  # the training is under way
            assert killed.poll() is None
            time.sleep(0.01)
        os.kill(killed.pid, signal.SIGKILL)
    run(monkeypatch, path, "--out", out, "--threads", 1)
    said = capfd.readouterr().out
    assert "padpolicy train" not in said  # the training outlived the study, and was waited for
    assert said.count("padpolicy eval") == 2

    before = {file: file.stat().st_mtime_ns for file in out.glob("*-3/**/*")}
    text = (out / "table.md").read_text()
    run(monkeypatch, path, "--out", out)
    assert capfd.readouterr().out == f"Table: {out / 'table.md'}\n"
    assert {file: file.stat().st_mtime_ns for file in out.glob("*-3/**/*")} == before
    assert (out / "table.md").read_text() == text

    found = json.loads((out / "results.json").read_text())
    base = json.loads((out / "base-3" / "results.json").read_text())
    assert found["arms"]["base"]["success_rate"] == base["success_rate"]
    assert found["arms"]["base"]["train_seconds"] == found["arms"]["often"]["train_seconds"] > 0
    assert found["arms"]["often"]["minus"]["base"] == "base"
    assert found["commit"] == [base["commit"]]
    assert [len(commands) for commands in found["commands"].values()] == [2, 1]
    assert json.loads((out / "often-3" / "results.json").read_text())["settings"]["exec_steps"] == 1

    study_file(tmp_path, STUDY.replace("updates: 2", "updates: 3"))
    with pytest.raises(ConfigError, match=r"base-3/cell.json .*\"updates\": 2.*\"updates\": 3"):
        run(monkeypatch, path, "--out", out)
    assert capfd.readouterr().out == ""


def finished(
    path: Path,
    out: Path,
    outcomes: dict[tuple[str, int], dict[str, list[int]]],
    scenes: str = "s",
    protocol: dict | None = None,
) -> None:
    """Cells whose evaluations found `outcomes`, each after a training of 10 s."""
    runner = ablate.Runner(ablate.load_study(path), out, 0)
    for (arm, seed), found in outcomes.items():
        cell = ablate.Cell(arm, seed, out)
        ablate.write(cell.record, {"asked": runner.asked(cell), "commands": [f"padpolicy {arm} {seed}"]})
        run = out / f"{arm}-{seed}" / "run"
        run.mkdir(parents=True)
        lines = [{"kind": "train", "step": 50, "samples_per_s": 8.0}]
        lines += [{"kind": "validation", "step": step, "loss_action": 2.0 / step + seed} for step in (1, 50)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "config.json").write_text('{"training": {"steps": 20, "batch_size": 4}}')
        results = {"outcomes": found, "seed": 7, "commit": "c", "episode_list_sha256": scenes}
        results["protocol"] = protocol or {}
        (run.parent / "results.json").write_text(json.dumps(results))


def test_the_table_pairs_seeds_tasks_and_scenes(tmp_path, monkeypatch):
    text = STUDY.replace("[3]", "[0, 1]").replace("policy: base, evaluate: [exec_steps=1]", "train: [seed=0]")
    path, out = study_file(tmp_path, text), tmp_path / "out"
    rng = np.random.default_rng(0)
    won = rng.integers(0, 2, (2, 2, 2, 5))  # arm, seed, task, scene
    cells = {
        (arm, seed): {"open_drawer": won[i, seed, 0].tolist(), "touch_red_cube": won[i, seed, 1].tolist()}
        for i, arm in enumerate(("base", "often"))
        for seed in (0, 1)
    }
    finished(path, out, cells)
    run(monkeypatch, path, "--out", out, "--table")
    arms = json.loads((out / "results.json").read_text())["arms"]
    for i, arm in enumerate(("base", "often")):
        assert arms[arm]["success_rate"] == pytest.approx(won[i].mean())
        assert list(arms[arm]["tasks"].values()) == pytest.approx(won[i].mean((0, 2)))
        assert arms[arm]["train_seconds"] == 10
        assert arms[arm]["validation_loss"] == pytest.approx(2 / 50 + 0.5)
    minus = arms["often"]["minus"]
    assert minus["mean"] == pytest.approx(won[1].mean() - won[0].mean())
    assert list(minus["by_seed"].values()) == pytest.approx((won[1] - won[0]).mean((1, 2)))
    assert minus["ci95"][0] < minus["mean"] < minus["ci95"][1]
    text = (out / "table.md").read_text()
    assert "2 x 10" in text
    widths = {len(line.split(" | ")) for line in text.split("\n\n")[1].splitlines()}
    assert widths == {10} and "| 0.5400 |" in text
    assert "padpolicy base 0\npadpolicy often 0\n" in text


def test_curves_stand_where_their_numbers_are():
    """The middle of three arms: half way along the axis, and as far down as its success and its loss say."""
    rows = {
        name: {"success_rate": rate, "ci95": [rate - 0.1, rate + 0.1], "validation_loss": loss}
        for name, rate, loss in (("a", 0.5, 0.3), ("b", 0.75, 0.1), ("c", 0.5, 0.2))
    }
    axis = {"x < 1": "a", "1": "b", "2": "c"}
    svg = ElementTree.fromstring(curves.draw(rows, {"x & y": axis, "not yet": {"1": "a", "2": "later"}}))
    names = {"s": "http://www.w3.org/2000/svg"}
    said = [text.text for text in svg.findall("s:text", names)]
    assert "x & y" in said and "x < 1" in said and "100%" in said and "not yet" not in said
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.findall("s:circle", names)]
    assert len(circles) == 6 and len(svg.findall("s:polyline", names)) == 2
    middle = curves.LEFT + curves.WIDTH / 2
    loss, success = curves.TOP, curves.TOP + curves.HEIGHT + curves.BETWEEN
    assert circles[4] == (middle, success + 0.25 * curves.HEIGHT)
    assert circles[1][1] == pytest.approx(loss + curves.HEIGHT * (1 - 0.03 / 0.26), abs=0.1)  # room: 0.15 * 0.2
    bar = svg.findall("s:line[@class='bar']", names)[1]
    assert [float(bar.get(end)) for end in ("y1", "y2")] == pytest.approx(
        [success + 0.35 * curves.HEIGHT, success + 0.15 * curves.HEIGHT]
    )
    for row in rows.values():
        row["validation_loss"] = None
    assert curves.draw(rows, {"x": axis}).count("<circle") == 3
    assert curves.draw({}, {"x": axis}) == ""


def test_a_training_that_ended_early_is_no_cell(tmp_path, monkeypatch):
    path = study_file(tmp_path, STUDY.replace("experiment=tiny", "experiment=tiny, training.max_seconds=5"))
    called = []
    monkeypatch.setattr(ablate, "call", lambda arguments, lock: called.append(arguments[0]))
    with pytest.raises(ConfigError, match=r"base-3/run: the training ended before its 2 updates"):
        run(monkeypatch, path, "--out", tmp_path / "out")
    assert called == ["train"]


def test_cells_without_a_validation_loss_stand_in_the_same_table(tmp_path, monkeypatch):
    path, out = study_file(tmp_path, STUDY.replace("policy: base, ", "")), tmp_path / "out"
    won = {"open_drawer": [1, 0], "touch_red_cube": [1, 1]}
    finished(path, out, {("base", 3): won, ("often", 3): won})
    (out / "often-3" / "run" / "metrics.jsonl").write_text('{"kind": "validation", "step": 2}\n')
    run(monkeypatch, path, "--out", out, "--table")
    found = json.loads((out / "results.json").read_text())["arms"]
    assert found["base"]["validation_loss"] is not None and found["often"]["validation_loss"] is None
    (out / "often-3" / "run" / "metrics.jsonl").unlink()
    run(monkeypatch, path, "--out", out, "--table")


def test_what_is_done_is_not_run_again(tmp_path, monkeypatch, capfd):
    path, out = study_file(tmp_path), tmp_path / "out"
    finished(path, out, {("base", 3): {"t": [0, 1]}, ("often", 3): {"t": [1, 1]}})
    run(monkeypatch, path, "--out", out)
    assert capfd.readouterr().out == f"Table: {out / 'table.md'}\n"


def test_a_cell_begun_under_other_settings_is_refused(tmp_path, monkeypatch):
    path, out = study_file(tmp_path), tmp_path / "out"
    study = ablate.load_study(path)
    for cell in ablate.cells_of(study, out):
        ablate.write(cell.record, {"asked": ablate.Runner(study, out, 0).asked(cell)})
    run(monkeypatch, path, "--out", out, "--table")
    study_file(tmp_path, STUDY.replace("exec_steps=1", "exec_steps=3"))
    with pytest.raises(ConfigError, match=r"often-3/cell.json .*exec_steps=1.*exec_steps=3.*another --out"):
        run(monkeypatch, path, "--out", out, "--table")


def test_an_arm_whose_policy_is_not_there_says_so(tmp_path, monkeypatch):
    path, out = study_file(tmp_path), tmp_path / "out"
    with pytest.raises(ConfigError, match="arm often needs the policy of arm base"):
        run(monkeypatch, path, "--out", out, "--only", "often")
    assert not list(out.glob("often-3/*"))


def test_a_command_that_outlived_its_study_is_waited_for(tmp_path, capsys):
    with ablate.alone(tmp_path) as lock:
        command = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"], pass_fds=(lock,))
    assert command.poll() is None
    with ablate.alone(tmp_path):
        command.wait(timeout=1)
    assert "another process is at work here" in capsys.readouterr().out


def test_a_seed_that_only_one_arm_has_is_not_in_the_difference(tmp_path, monkeypatch):
    path, out = study_file(tmp_path, STUDY.replace("[3]", "[0, 1]")), tmp_path / "out"
    finished(path, out, {("base", 0): {"t": [0, 1]}, ("base", 1): {"t": [1, 1]}, ("often", 0): {"t": [1, 1]}})
    run(monkeypatch, path, "--out", out, "--table")
    minus = json.loads((out / "results.json").read_text())["arms"]["often"]["minus"]
    assert minus["by_seed"] == {"0": 0.5}
    assert minus["mean"] == 0.5


def test_cells_of_different_scenes_are_not_compared(tmp_path, monkeypatch):
    path, out = study_file(tmp_path), tmp_path / "out"
    finished(path, out, {("base", 3): {"t": [0, 1]}})
    finished(path, out, {("often", 3): {"t": [0, 1]}}, scenes="others")
    with pytest.raises(ConfigError, match="on different scenes"):
        run(monkeypatch, path, "--out", out, "--table")


def test_other_protocols_make_no_table_but_executed_steps_may_differ(tmp_path, monkeypatch):
    path = study_file(tmp_path)
    for out, changes in (("a", {"exec_steps": 1}), ("b", {"goals": "fixed"})):
        finished(path, tmp_path / out, {("base", 3): {"t": [0, 1]}}, protocol={"goals": "random", "exec_steps": 2})
        protocol = {"goals": "random", "exec_steps": 2} | changes
        finished(path, tmp_path / out, {("often", 3): {"t": [0, 1]}}, protocol=protocol)
    run(monkeypatch, path, "--out", tmp_path / "a", "--table")
    with pytest.raises(ConfigError, match="different protocols .goals: random, fixed"):
        run(monkeypatch, path, "--out", tmp_path / "b", "--table")


@pytest.mark.parametrize(
    ("old", "new"), [("common: [experiment=tiny]", "common: [experiment=tiny, training.lr=1]"), ("why", "data")]
)
def test_an_arm_that_builds_on_another_is_refused_when_that_one_changed(tmp_path, monkeypatch, old, new):
    """Its policy would be paired with another one's."""
    path, out = study_file(tmp_path), tmp_path / "out"
    finished(path, out, {("often", 3): {"t": [0, 1]}})  # the cell of `base` was deleted
    text = STUDY.replace(old, new) if old != "why" else STUDY + "data: {more: [env=tabletop]}\n"
    with pytest.raises(ConfigError, match="often-3.cell.json says that this was begun with"):
        run(monkeypatch, study_file(tmp_path, text), "--out", out, "--table")


def test_seeds_come_before_arms_and_commands_differ_only_where_they_should(tmp_path):
    study = ablate.load_study(ROOT / "scripts" / "ablation" / "futures.yaml")
    runner = ablate.Runner(study, tmp_path, threads=1)
    cells = ablate.cells_of(study, tmp_path)
    assert [(c.seed, c.arm) for c in cells[:5]] == [*((0, arm) for arm in study.arms), (1, "acts")]
    imagines, watches = (set(runner.train_command(cell)) for cell in cells[1:3])
    assert {override.partition("=")[0] for override in imagines ^ watches} == {
        *("data.videos", "data.video_ratio", "training.batch_size", "out")
    }
    ends = [[o for o in runner.eval_command(c) if not o.startswith(("checkpoint=", "out="))] for c in cells]
    assert all(end == ends[0] for end in ends)
    assert f"data.path={tmp_path}/data/demonstrations.zarr" in imagines
    assert [command[0] for command in runner.stores.values()] == ["collect", "collect", "label"]


STUDIES = [*sorted((ROOT / "scripts" / "ablation").glob("*.yaml")), ablate.FAMILIES]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_composes(path, tmp_path):
    study = ablate.load_study(path)
    ablate.Runner(study, tmp_path, threads=1).check(ablate.cells_of(study, tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("base: base\narms", "base: bsae\narms", "base is 'bsae'; there are the arms base, often"),
        (
            "base: base\narms",
            "base: base\ncurves: {c: {x: bsae}}\narms",
            "curves names 'bsae'; there are the arms base",
        ),
        ("policy: base", "policy: later", "often takes the policy of 'later', which no arm before it trains"),
        ("evaluate: [exec_steps=1]", "train: [seed=1]", "has policy=base, so it is not trained"),
        ("seeds: [3]", "seeds: [3, 3]", r"one or more different numbers, got \[3, 3\]"),
        ("updates: 2", "update: 2", "'update' not in 'Study'"),
        ("why: all of it", "what: all", "'what' not in 'Arm'"),
        ("[experiment=tiny]", "[experiment=tiny, modle.width=3]", "Did you mean model.width"),
    ],
)
def test_mistakes_in_a_study_are_named_before_anything_runs(tmp_path, monkeypatch, old, new, words):
    path = study_file(tmp_path, STUDY.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        run(monkeypatch, path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
