"""`padpolicy bench` on a tiny network: what it reports, and that the bare one is as large. No times are asserted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from padpolicy import cli, config
from padpolicy.bench.bare import BareDiT, BareTraining, Size
from padpolicy.bench.run import measured_size, random_batch, take_turns, untrained_policy
from padpolicy.policy import PadPolicy

ROWS = ("plan:", "denoising:", "environment", "training:")


@pytest.fixture(scope="module")
def tiny() -> PadPolicy:
    recipe = config.load("train", ["experiment=tiny", "out=x", "data.path=x"])
    recipe = dataclasses.replace(recipe, diffusion=dataclasses.replace(recipe.diffusion, modes={"joint": 1.0}))
    return untrained_policy(recipe, torch.device("cpu"))


def test_bench_reports_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results" / "bench.json"
    arguments = ["recipe=tiny", "repeats=1", "env_steps=2", "batch_size=2", "device=cpu", f"out={file}"]
    assert cli.main(["bench", *arguments]) == 0
    results = json.loads(file.read_text())
    assert [row["name"].startswith(start) for row, start in zip(results["rows"], ROWS, strict=True)] == [True] * 4
    for row in results["rows"]:
        assert row["unit"] in ("ms", "steps/s", "samples/s")
        best, rest = (row["other"], row["ours"]) if row["unit"] == "ms" else (row["ours"], row["other"])
        assert row["ratio"] == pytest.approx(best / rest)
    assert set(results["latency_ms"]) == {"encode", "context", "one step", "post", "total"}
    assert all(0 <= ms["p50"] <= ms["p95"] for ms in results["latency_ms"].values())
    assert {"policy", "commit", "torch", "cpu", "device", "threads", "clock", "repeats"} <= set(results)
    shown = capsys.readouterr().out
    assert all(start in shown for start in ROWS)
    assert "untrained network of experiment=tiny" in shown


def test_every_sample_of_the_training_step_is_learned_from(tiny: PadPolicy) -> None:
    """A benchmark of a step that skips work would flatter."""
    batch = random_batch(tiny, 3, targets=True)
    assert tiny.draw_modes(batch) == ["joint"] * 3
    assert tiny.valid_counts(batch) == {"action": 3, "rgb": 3, "depth": 3}
    assert tiny.loss(batch).total() > 0


def test_the_bare_network_is_of_the_same_size(tiny: PadPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(tiny, 2, targets=True)
    size, actions = measured_size(tiny, batch)
    seen: list[int] = []
    trunk, denoise = tiny.network.trunk, tiny.network.trunk.denoise
    monkeypatch.setattr(trunk, "denoise", lambda x, *rest: seen.append(x.shape[1]) or denoise(x, *rest))
    tiny.loss(batch)
    assert seen == [size.noised]
    assert actions == tiny.spec.chunk_steps
    weights = [sum(p.numel() for p in blocks.parameters()) for blocks in (trunk.blocks, BareDiT(size).blocks)]
    assert weights[0] == weights[1]


def test_the_bare_network_learns() -> None:
    torch.manual_seed(0)
    step = BareTraining(Size(2, 3, 5, 16, 2, 2, 2.0), 2, torch.device("cpu"), bf16=False)
    before = [p.detach().clone() for p in step.model.parameters()]
    step()
    moved = [not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True)]
    assert all(moved)


def test_jobs_take_turns() -> None:
    order: list[str] = []
    now = iter(range(100))
    seconds = take_turns([lambda: order.append("a"), lambda: order.append("b")], 2, lambda: float(next(now)))
    assert order == ["a", "b"] * 3  # once unmeasured, then twice
    assert seconds == [1.0, 1.0]


def test_a_recipe_without_a_known_robot_is_refused() -> None:
    recipe = config.load("train", ["experiment=tiny", "out=x", "data.path=x", "env.id=Moon-v0"])
    with pytest.raises(config.ConfigError, match="bench knows no robot of 'Moon-v0'"):
        untrained_policy(recipe, torch.device("cpu"))


def test_out_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="is a directory; expected a JSON file"):
        config.load("bench", [f"out={tmp_path}"])
