"""Accumulation, the schedule, the optimiser's groups, and that the whole learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import SIZE

from padpolicy import config
from padpolicy.data.store import StoreError
from padpolicy.saving import find_policy
from padpolicy.training import checkpoint, loop
from padpolicy.training.loop import train

MIXED = ["data.video_ratio=0.5", "diffusion.modes={policy:1,joint:1,forward:1,inverse:1}"]


def final(cfg: config.TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.newest(Path(cfg.out))[0] / "training.safetensors")


def test_two_halves_of_a_batch_equal_the_whole(tiny, video_store) -> None:
    """The batch is mixed, so the halves have different numbers of valid samples: dividing each alone would show."""
    mixed = [*MIXED, f"data.videos=[{video_store}]", "training.steps=3"]
    whole, halves = tiny("whole", *mixed), tiny("halves", *mixed, "training.accumulate=2")
    train(whole)
    train(halves)
    one, two = final(whole), final(halves)
    for name in one:
        if name.startswith(("weights/", "average/")):
            torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0)


def test_the_learning_rate_step_by_step() -> None:
    cfg = config.TrainConfig(out="x")
    cfg.training.lr, cfg.training.final_lr_fraction = 1.0, 0.1
    cfg.training.warmup_steps, cfg.training.steps = 4, 12
    assert [loop.learning_rate(cfg, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert loop.learning_rate(cfg, 8) == pytest.approx(0.55)  # half way down
    assert loop.learning_rate(cfg, 12) == pytest.approx(0.1)
    rates = [loop.learning_rate(cfg, step) for step in range(4, 13)]
    assert rates == sorted(rates, reverse=True)
    cfg.training.warmup_steps = 0
    assert loop.learning_rate(cfg, 0) == 1.0


def test_weight_decay_acts_on_matrices_only(tiny) -> None:
    cfg = config.TrainConfig(out="x")
    optimizer = loop.make_optimizer(torch.nn.Linear(3, 3), cfg)
    (matrices, vectors) = optimizer.param_groups
    assert [p.ndim for p in matrices["params"]] == [2] and matrices["weight_decay"] == cfg.training.weight_decay
    assert [p.ndim for p in vectors["params"]] == [1] and vectors["weight_decay"] == 0


def test_videos_alone_train_and_robot_data_alone_validates(tiny, video_store) -> None:
    videos = tiny("videos", "data.path=''", f"data.videos=[{video_store}]", "training.steps=2")
    train(videos)
    held_out = tiny("held_out", "data.val_fraction=0.3", "training.validate_every=2", "training.steps=2")
    train(held_out)
    text = (Path(held_out.out) / "metrics.jsonl").read_text()
    assert text.count('"kind": "validation", "step": 2') == 1


def test_imagined_futures_are_drawn_into_the_log(tiny) -> None:
    cfg = tiny("run", "data.val_fraction=0.3", "training.imagine_every=1", "training.steps=1")
    train(cfg)
    (events,) = (Path(cfg.out) / "tensorboard").iterdir()
    assert b"imagined/front" in events.read_bytes()


def test_videos_alone_are_imagined_too(tiny, video_store) -> None:
    """There are no statistics of actions, so none can be denoised beside the future."""
    videos = ["data.path=''", f"data.videos=[{video_store}]", "data.val_fraction=0.3"]
    cfg = tiny("run", *videos, "training.imagine_every=1", "training.steps=1")
    train(cfg)
    (events,) = (Path(cfg.out) / "tensorboard").iterdir()
    assert b"imagined/front" in events.read_bytes()


def test_log_every_0_is_never(tiny) -> None:
    cfg = tiny("run", "training.log_every=0", "training.steps=2")
    seen: list[dict] = []
    train(cfg, lambda step, numbers: seen.append(numbers))
    assert not (Path(cfg.out) / "metrics.jsonl").exists()
    assert len(seen) == 2 and all("loss" in numbers for numbers in seen)


def test_what_is_evaluated_is_the_policy_of_that_step(tiny, monkeypatch) -> None:
    monkeypatch.setattr(loop, "_evaluate", lambda cfg, step: {"newest": int(find_policy(cfg.out).parent.name[5:])})
    cfg = tiny("run", "training.steps=5", "training.checkpoint_every=2", "training.evaluate_every=3")
    train(cfg)
    lines = [json.loads(line) for line in (Path(cfg.out) / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert evaluations == [{"kind": "evaluation", "step": 3, "newest": 3}]


def test_a_time_limit_ends_the_run_with_a_checkpoint(tiny) -> None:
    cfg = tiny("run", "training.steps=1000", "training.max_seconds=0.001")
    train(cfg)
    assert checkpoint.newest(Path(cfg.out))[0].name == "step_00000001"


def test_a_small_policy_learns_one_episode_by_heart(tiny, one_episode) -> None:
    learn = ["training.steps=100", "training.lr=1e-2", "training.warmup_steps=5", "training.checkpoint_every=0"]
    task = ["diffusion.modes={policy:1}", "diffusion.text_dropout=0", "diffusion.action_draws=8", "model.width=32"]
    losses: list[float] = []
    cfg = tiny("run", f"data.path={one_episode}", *learn, *task)
    train(cfg, lambda step, numbers: losses.append(numbers["loss_action"]))
    first, last = sum(losses[:5]) / 5, sum(losses[-20:]) / 20
    assert last < 0.6 * first, (first, last)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.cameras=[side]"], StoreError, "data.cameras asks for camera 'side', which no source has; they have: "),
        (["data.image_size=30"], config.ConfigError, "data.image_size=30 is not a multiple of 8"),
        (["data.image_size=40"], config.ConfigError, "latents of 5 x 5, which is not a multiple of model.patch=2"),
        (["data.dt_s=0.2"], StoreError, "actions are 0.1 s apart, data.dt_s is 0.2"),
        (["data.path=nowhere.zarr"], StoreError, "nowhere.zarr: .*there is nothing at this path"),
    ],
)
def test_data_that_does_not_fit_the_settings(tiny, overrides, error, message) -> None:
    assert SIZE == 32
    with pytest.raises(error, match=message):
        train(tiny("run", *overrides))
