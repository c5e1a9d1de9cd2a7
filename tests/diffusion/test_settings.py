"""The noise of a policy by its settings: what goes together, trains and samples, and what older policies meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small import ACTION, CHUNK, batch_of, robot_sample, small_policy

from padpolicy import config
from padpolicy.saving import load_fitting, read_settings, save_policy

DDPM, VARIANCE = {"objective": "ddpm"}, {"learn_variance": True}
BOUND, UNIFORM = {**DDPM, "loss": "bound"}, {"tau_law": "uniform", "times": "shared"}
DENSE = {"tau_law": "importance", "tau_density": [1.0, 2.0]}
ANCESTRAL = {**DDPM, "sampler": "ancestral"}
MISTAKES = [
    ({"predict_action": "noise"}, "", "predict_action=noise needs diffusion.objective=ddpm; it is 'flow'"),
    ({"predict_future": "noise"}, "", "predict_future=noise needs diffusion.objective=ddpm"),
    (VARIANCE, "", "learn_variance=true needs diffusion.objective=ddpm"),
    ({"loss": "bound"}, "", "loss=bound needs diffusion.objective=ddpm"),
    ({"schedule": "cosine"}, "", "schedule=cosine needs diffusion.objective=ddpm"),
    ({"clip_action": 1.0}, "", "clip_action=1.0 needs diffusion.objective=ddpm"),
    ({"sampler": "ddim"}, "", "sampler=ddim: diffusion.objective=flow has euler, heun"),
    ({}, "ancestral", "evaluation.sampler=ancestral: diffusion.objective=flow has euler"),
    ({**DDPM, "sampler": "heun"}, "", "sampler=heun: diffusion.objective=ddpm has ddim, ancestral"),
    ({**DDPM, "loss": "hybrid"}, "", "loss=hybrid trains a variance: it needs diffusion.learn_variance=true"),
    ({**DDPM, **VARIANCE, "loss": "simple"}, "", "loss=simple never trains a variance"),
    ({**BOUND, "times": "shared"}, "", "loss=bound is a mean over uniform times: it needs diffusion.tau_law=uniform"),
    ({**BOUND, "tau_law": "uniform"}, "", "loss=bound is a mean over uniform times.*diffusion.times=shared"),
    ({**DDPM, "schedule_shift": 0.5}, "", "schedule_shift=0.5 needs diffusion.schedule=shifted"),
    ({**DDPM, "schedule": "shifted", "schedule_shift": 0.0}, "", "schedule_shift=0.0: a ratio, more than 0"),
    ({"tau_law": "importance"}, "", "tau_density=.* belong together"),
    ({"tau_density": [1.0]}, "", "tau_density=.* belong together"),
    ({**DENSE, "tau_density": [1.0, 0.0]}, "", "tau_density=.*each more than 0"),
    (DENSE, "", "tau_law=importance weighs a loss by the density of one time"),
    ({**ANCESTRAL, "steps": 1001}, "", "steps=1001 is more than"),
    ({**ANCESTRAL, "steps": 7}, "ddim", "evaluation.steps=7 does not divide"),
    ({**DDPM, "sampler": "dpmsolver++", "steps": 7}, "", "steps=7 does not divide.*dpmsolver.. would stop short"),
]
FITTING = [
    ({**BOUND, **UNIFORM}, ""),
    ({**BOUND, **UNIFORM, **VARIANCE}, ""),
    ({**DENSE, "times": "shared"}, ""),
    ({**DDPM, "schedule": "shifted", "schedule_shift": 0.5, "predict_action": "noise"}, ""),
    ({**ANCESTRAL, "steps": 7}, ""),
    ({"sampler": "heun", "guidance_future": 3.0}, "euler"),
]


def check(settings: dict, evaluated: str) -> None:
    cfg = config.TrainConfig(out="o", data=config.DataConfig(path="d"), diffusion=config.DiffusionConfig(**settings))
    cfg.evaluation.sampler = evaluated
    config.check(cfg)


@pytest.mark.parametrize(("settings", "evaluated", "words"), MISTAKES, ids=lambda v: "")
def test_what_does_not_go_together_says_so(settings, evaluated, words) -> None:
    with pytest.raises(config.ConfigError, match=words):
        check(settings, evaluated)


@pytest.mark.parametrize(("settings", "evaluated"), FITTING, ids=lambda v: "")
def test_what_goes_together(settings, evaluated) -> None:
    check(settings, evaluated)


@pytest.mark.parametrize("settings", [["diffusion=pad"], ["family=unet"], ["family=transformer"]])
def test_published_systems_say_the_noise(settings) -> None:
    diffusion = config.load("train", ["out=o", "data.path=d", *settings]).diffusion
    assert (diffusion.objective, diffusion.predict_action, diffusion.predict_future) == ("ddpm", "noise", "noise")


def test_a_run_may_change_how_it_samples() -> None:
    before = config.to_dict(config.load("train", ["out=o", "data.path=d"]))
    now = ["diffusion.sampler=heun", "diffusion.guidance_future=2", "diffusion.guidance_channels=3"]
    assert config.changed(before, config.load("train", ["out=o", "data.path=d", *now])) == []
    said = config.changed(before, config.load("train", ["out=o", "data.path=d", "diffusion.times=shared"]))
    assert said == ["diffusion.times was 'future_noisier', is 'shared'"]


# -- in a policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"predict_action": "noise", "predict_future": "noise", "learn_variance": True},
        {"loss": "bound", "learn_variance": True, "schedule": "cosine", "predict_action": "velocity"},
        {"loss": "bound", "predict_action": "clean", "schedule": "shifted", "schedule_shift": 0.5},
    ],
)
def test_every_loss_trains_every_weight(settings) -> None:
    policy = small_policy(objective="ddpm", tau_law="uniform", times="shared", train_steps=50, **settings)
    batch, generator = batch_of(*(robot_sample(i) for i in range(32))), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():  # from where training starts, closed gates hide what is behind them
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    policy.loss(batch).total().backward()
    untrained = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untrained == []
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters())


@pytest.mark.parametrize("kind", config.SAMPLERS)
def test_every_sampler_keeps_a_prefix_and_repeats_itself(kind) -> None:
    policy = small_policy(objective=kind, clip_action=2.0 if kind == "ddpm" else 0.0, steps=4)
    obs = batch_of(robot_sample(0), robot_sample(1))
    prefix, length = torch.full((2, CHUNK, ACTION), 0.3), torch.tensor([0, 3])
    start = {"action": torch.randn(2, CHUNK, ACTION, generator=torch.Generator().manual_seed(1))}
    first = None
    for sampler in config.SAMPLERS[kind]:
        runs = [
            policy.predict(obs, sampler=sampler, noise=start, prefix=prefix, prefix_len=length).action for _ in "ab"
        ]
        assert torch.equal(*runs) and torch.equal(runs[0][1, :3], prefix[1, :3])
        assert first is None or not torch.allclose(first, runs[0], atol=1e-4)
        first = runs[0] if first is None else first
    assert torch.equal(policy.predict(obs, noise=start, prefix=prefix, prefix_len=length).action, first)


def test_even_densities_are_no_importance_and_others_move_the_times() -> None:
    batch = batch_of(*(robot_sample(i) for i in range(4)))
    even, uneven, uniform = (
        small_policy(times="shared", tau_law=law, tau_density=density)
        for law, density in (("importance", [2.0]), ("importance", [1.0, 3.0]), ("uniform", []))
    )
    losses = [policy.loss(batch).total() for policy in (even, uneven, uniform)]
    assert torch.equal(losses[0], losses[2]) and not torch.allclose(losses[1], losses[2], rtol=1e-3)


def test_a_loss_of_a_rare_time_counts_for_more() -> None:
    """One sample in one mode: its loss is that of its time, divided by how dense that is."""
    batch = batch_of(robot_sample(0))
    settings = {"modes": {"policy": 1.0, "joint": 0, "forward": 0, "inverse": 0}, "action_draws": 1}
    policy = small_policy(tau_law="importance", tau_density=[1.0, 3.0], **settings)
    tau = policy._draw_tau("policy", batch, 1)["action"]
    weighted = policy.loss(batch).value["action"]
    policy._draw_tau = lambda *_: {"action": tau}
    policy.config.diffusion.tau_density = []
    density = 0.5 if tau < 0.5 else 1.5
    assert torch.allclose(weighted, policy.loss(batch).value["action"] / density)


# -- older policies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "said"), [("ddpm", ("noise", "noise")), ("flow", ("velocity", "clean"))])
def test_a_policy_of_before_means_what_it_meant(kind, said, tmp_path: Path) -> None:
    """ddpm always said the noise, whatever stood in predict_*; only the settings of flow meant something."""
    save_policy(small_policy(objective=kind), tmp_path / "p")
    file = tmp_path / "p" / "policy.json"
    values = json.loads(file.read_text())
    new = ("loss", "schedule", "schedule_shift", "tau_density", "sampler", "clip_action", "guidance_future")
    for key in (*new, "guidance_channels"):
        del values["config"]["diffusion"][key]
    file.write_text(json.dumps(values))
    diffusion = read_settings(tmp_path / "p").config.diffusion
    assert (diffusion.predict_action, diffusion.predict_future) == said
    same = small_policy(objective=kind, predict_action=said[0], predict_future=said[1])
    assert load_fitting(same, tmp_path / "p") == []
