"""A run that was stopped and started again is the run that was not, to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import MeanEncoder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import STEPS, make_store

from padpolicy.config import ConfigError
from padpolicy.data.store import Episode, Store
from padpolicy.saving import CheckpointError, find_policy, read_settings
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
    for file in ("model.safetensors", "policy.json"):
        policies = [checkpoint.newest(Path(cfg.out))[0] / "policy" / file for cfg in (straight, stopped)]
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


def test_a_run_goes_on_under_the_settings_it_was_begun_with(tiny) -> None:
    cfg = tiny("run", "training.steps=1")
    train(cfg)
    written = (Path(cfg.out) / "config.json").read_bytes()
    said = "was begun with other settings: seed was 0, is 1; model.width was 16, is 32. .* training.init="
    with pytest.raises(ConfigError, match=said):
        train(tiny("run", "training.steps=2", "model.width=32", "seed=1"))
    assert (Path(cfg.out) / "config.json").read_bytes() == written
    train(tiny("run", "training.steps=2", "training.checkpoint_every=0", "training.accumulate=2"))
    assert checkpoint.newest(Path(cfg.out))[0].name == "step_00000002"
    assert json.loads((Path(cfg.out) / "config.json").read_text())["training"]["steps"] == 2


@pytest.mark.parametrize("left", [None, "", "{"])
def test_a_run_that_does_not_say_how_it_was_begun_is_not_continued(tiny, left) -> None:
    cfg = tiny("run", "training.steps=1")
    train(cfg)
    file = Path(cfg.out) / "config.json"
    file.unlink() if left is None else file.write_text(left)
    with pytest.raises(CheckpointError, match="config.json, which says how this run was begun, is missing or damaged"):
        train(tiny("run", "training.steps=2"))


def test_a_run_goes_on_under_its_statistics_when_its_data_grow(tiny, tmp_path) -> None:
    store = make_store(tmp_path / "grows.zarr")
    cfg = tiny("run", f"data.path={store}", "training.steps=1")
    train(cfg)
    first = read_settings(find_policy(cfg.out))
    with Store.open(store, "a") as more:
        arrays = {name: more.read(name, 0, STEPS) for name in (*more.fields, "timestamp")}
        arrays["action"][:, :3] *= 9
        arrays["depth_front"] += 1000
        more.append(Episode(arrays, "push the cube", id="larger"))
    train(tiny("run", f"data.path={store}", "training.steps=2"))
    second = read_settings(find_policy(cfg.out))
    assert find_policy(cfg.out).parent.name == "step_00000002"
    assert (second.normalizer.stats, second.depth) == (first.normalizer.stats, first.depth)
    train(tiny("fresh", f"data.path={store}", "training.steps=1"))
    fresh = read_settings(find_policy(tmp_path / "fresh"))
    assert fresh.normalizer.stats != first.normalizer.stats and fresh.depth != first.depth


def test_a_run_does_not_go_on_with_another_robot_or_encoder(tiny, tmp_path, monkeypatch) -> None:
    train(tiny("run", "training.steps=1"))
    other = make_store(tmp_path / "other.zarr", names=("x", "z", "yaw", "gripper"))
    with pytest.raises(CheckpointError, match="trained on other data or with other encoders: action was .*'y'.*'z'"):
        train(tiny("run", f"data.path={other}", "training.steps=2"))
    monkeypatch.setattr(MeanEncoder, "fingerprint", "mean9")
    with pytest.raises(CheckpointError, match="other encoders: encoders.image was 'mean8', is 'mean9'"):
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


def test_a_resumed_run_does_not_look_for_its_init(tiny) -> None:
    first = tiny("first", "training.steps=1")
    train(first)
    second = ["training.checkpoint_every=1", f"training.init={first.out}"]
    with pytest.raises(Killed):
        train(tiny("second", *second), die_after(2))
    shutil.rmtree(first.out)
    train(tiny("second", *second))


def test_every_point_of_a_resumed_run_is_on_the_chart_once(tiny) -> None:
    cfg = tiny("run")
    with pytest.raises(Killed):
        train(cfg, die_after(3))
    train(cfg)
    events = EventAccumulator(str(Path(cfg.out) / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4]
