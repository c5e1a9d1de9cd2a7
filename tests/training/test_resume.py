"""A run that was stopped and started again is the run that was not, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from padpolicy.saving import CheckpointError
from padpolicy.training import checkpoint, loop
from padpolicy.training.loop import train


class Killed(BaseException):
    """What nothing catches."""


def die_after(steps: int):
    def progress(done: int, numbers: dict[str, float]) -> None:
        if done == steps:
            raise Killed

    return progress


def final(out: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.newest(out)[0] / "training.safetensors")


def logged(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny) -> None:
    straight, stopped = tiny("straight"), tiny("stopped")
    train(straight)
    with pytest.raises(Killed):
        train(stopped, die_after(3))  # the newest checkpoint is that of step 2
    assert [path.name for path in checkpoint.newest(Path(stopped.out))] == ["step_00000002"]
    train(stopped)
    one, two = final(Path(straight.out)), final(Path(stopped.out))
    assert {name.split("/")[0] for name in one} == {"weights", "average", "exp_avg", "exp_avg_sq", "steps"}
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    policies = [checkpoint.newest(Path(cfg.out))[0] / "policy" / "model.safetensors" for cfg in (straight, stopped)]
    assert policies[0].read_bytes() == policies[1].read_bytes()


def test_each_step_is_logged_once_however_often_a_run_was_stopped(tiny) -> None:
    cfg = tiny("run")
    with pytest.raises(Killed):
        train(cfg, die_after(3))
    path = Path(cfg.out) / "metrics.jsonl"
    assert [line["step"] for line in logged(Path(cfg.out))] == [1, 2, 3]
    with path.open("a") as file:
        file.write('{"kind": "train", "st')  # what a kill leaves of a line
    train(cfg)
    assert [line["step"] for line in logged(Path(cfg.out))] == [1, 2, 3, 4]
    assert {"loss", "loss_action", "loss_rgb", "loss_depth", "grad_norm", "lr"} <= logged(Path(cfg.out))[0].keys()


def test_the_first_batch_is_in_the_log(tiny) -> None:
    cfg = tiny("run", "training.steps=1")
    train(cfg)
    (events,) = (Path(cfg.out) / "tensorboard").iterdir()
    assert b"obs.proprio" in events.read_bytes()
    assert json.loads((Path(cfg.out) / "config.json").read_text())["training"]["steps"] == 1


def test_a_finished_run_has_nothing_to_do(tiny) -> None:
    cfg = tiny("run", "training.steps=2")
    train(cfg)
    before = final(Path(cfg.out))
    train(cfg, die_after(1))
    after = final(Path(cfg.out))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_the_newest_checkpoints_stay_and_leftovers_of_killed_writes_go(tiny) -> None:
    cfg = tiny("run", "training.checkpoint_every=1", "training.keep_checkpoints=2")
    leftover = Path(cfg.out) / "checkpoints" / ".step_00000001.abcd"
    leftover.mkdir(parents=True)
    (leftover / "training.safetensors").write_bytes(b"half of it")
    train(cfg)
    names = sorted(path.name for path in (Path(cfg.out) / "checkpoints").iterdir())
    assert names == ["step_00000003", "step_00000004"]


def test_a_gradient_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint_before(tiny, monkeypatch) -> None:
    cfg, backward = tiny("run", "training.checkpoint_every=1"), loop.backward

    def poisoned(policy, parts, *rest):
        terms = backward(policy, parts, *rest)
        if parts[0].step == 2:
            next(p for p in policy.parameters() if p.grad is not None).grad.view(-1)[0] = float("nan")
        return terms

    monkeypatch.setattr(loop, "backward", poisoned)
    with pytest.raises(FloatingPointError, match="step 2: the gradient is nan.*The last checkpoint is sound"):
        train(cfg)
    assert checkpoint.newest(Path(cfg.out))[0].name == "step_00000002"
    assert all(torch.isfinite(tensor).all() for tensor in final(Path(cfg.out)).values())
    monkeypatch.setattr(loop, "backward", backward)
    train(cfg)
    assert checkpoint.newest(Path(cfg.out))[0].name == "step_00000004"


@pytest.mark.parametrize("file", ["training.safetensors", "training.json"])
def test_a_truncated_checkpoint_says_what_to_do(tiny, file) -> None:
    cfg = tiny("run", "training.steps=1")
    train(cfg)
    path = checkpoint.newest(Path(cfg.out))[0] / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="step_00000001 is damaged or cut short.*Delete this folder"):
        train(cfg)


def test_a_run_of_another_network_is_not_continued(tiny) -> None:
    train(tiny("run", "training.steps=1"))
    with pytest.raises(CheckpointError, match="step_00000001 does not fit this network: .*expected"):
        train(tiny("run", "training.steps=2", "model.width=32"))


def test_switching_the_average_on_needs_a_new_run(tiny) -> None:
    train(tiny("run", "training.steps=1", "training.ema=0"))
    with pytest.raises(CheckpointError, match="holds no moving average.*training.ema=0"):
        train(tiny("run", "training.steps=2"))


def test_init_takes_what_fits_and_names_what_does_not(tiny) -> None:
    first = tiny("first", "training.steps=1")
    train(first)
    given = load_file(checkpoint.newest(Path(first.out))[0] / "policy" / "model.safetensors")
    second = tiny("second", f"training.init={first.out}", "training.steps=1", "training.lr=0", "model.depth=3")
    train(second)
    own = load_file(checkpoint.newest(Path(second.out))[0] / "training.safetensors")
    assert all(torch.equal(own[f"weights/{name}"], given[name]) for name in given)
    fresh = {name.removeprefix("weights/") for name in own if name.startswith("weights/")} - given.keys()
    (events,) = (Path(second.out) / "tensorboard").iterdir()
    assert fresh and all(name.encode() in events.read_bytes() for name in fresh)
    with pytest.raises(CheckpointError, match="no policy at 'nowhere/at/all'"):
        train(tiny("third", "training.init=nowhere/at/all"))
