"""Samplers against diffusers step by step, and the laws that they all keep."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from padpolicy.config import SAMPLERS
from padpolicy.diffusion.objective import Objective
from padpolicy.diffusion.sampler import _scheduler, row_generators, sample

FLOW, CLEAN, DDPM = Objective("flow"), Objective("flow", {"x": "clean"}), Objective("ddpm")
ALL = [(kind, sampler) for kind in SAMPLERS for sampler in SAMPLERS[kind]]
PREDICTS = {"noise": "epsilon", "clean": "sample", "velocity": "v_prediction"}
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answer(x: torch.Tensor, tau: float) -> torch.Tensor:
    """Of an imagined network."""
    return 0.8 * torch.tanh(x) + 0.3 * tau * torch.cos(3 * x)


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 1), ("euler", 4), ("heun", 1), ("heun", 4)])
def test_flow_steps_are_those_of_diffusers(sampler, steps):
    name = {"euler": "FlowMatchEulerDiscreteScheduler", "heun": "FlowMatchHeunDiscreteScheduler"}[sampler]
    reference = getattr(diffusers, name)(num_train_timesteps=steps)  # sigmas 1, ..., 1 / steps
    reference.set_timesteps(steps)
    seen: list[torch.Tensor] = []

    def denoise(x, tau):
        seen.append(x["x"])
        return {"x": answer(x["x"], tau)}

    x = noise = normal(2, 3).float()
    out = sample(FLOW, denoise, {"x": noise}, steps, sampler=sampler)["x"]
    for i, t in enumerate(reference.timesteps):
        assert torch.allclose(seen[i], x, atol=1e-6)
        x = reference.step(answer(x, float(t) / steps), t, x).prev_sample
    assert torch.allclose(out, x, atol=1e-6) and len(seen) == len(reference.timesteps)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' own table
@pytest.mark.parametrize(("said", "schedule"), [("noise", "linear"), ("clean", "linear"), ("velocity", "cosine")])
@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++", "ancestral", "learned"])
def test_ddpm_steps_are_those_of_diffusers(sampler, said, schedule):
    """Told what the network said, not what that implies of the clean data, over a schedule of diffusers' own."""
    shared = {
        "num_train_timesteps": 100,
        "beta_start": 1e-3,
        "beta_end": 0.2,
        "beta_schedule": BETAS[schedule],
        "prediction_type": PREDICTS[said],
    }
    learned, noise = sampler == "learned", normal(3, 4, 2)
    draw: dict = {}
    if sampler == "ddim":
        reference = diffusers.DDIMScheduler(**shared, clip_sample=False, timestep_spacing="trailing")
    elif sampler == "dpmsolver++":
        reference = diffusers.DPMSolverMultistepScheduler(**shared, timestep_spacing="trailing")
    else:
        width = "learned_range" if learned else "fixed_small"
        reference = diffusers.DDPMScheduler(
            **shared, clip_sample=False, variance_type=width, timestep_spacing="linspace"
        )
        draw = {"generator": row_generators("x", noise)}
    reference.set_timesteps(20)
    seen: list[torch.Tensor] = []

    def denoise(x, tau):
        seen.append(x["x"])
        mean = answer(x["x"], tau)
        return {"x": torch.cat([mean, torch.sin(x["x"])], -1) if learned else mean}

    objective = Objective("ddpm", {"x": said}, learned, 100, schedule)
    out = sample(objective, denoise, {"x": noise}, 20, sampler="ancestral" if learned else sampler)["x"]
    x = noise
    for i, k in enumerate(reference.timesteps):
        assert torch.allclose(seen[i], x, atol=1e-5)
        said_now = answer(x, (int(k) + 1) / 100)
        said_now = torch.cat([said_now, torch.sin(x)], 1) if learned else said_now
        x = reference.step(said_now, k, x, **draw).prev_sample
    assert torch.allclose(out, x, atol=1e-5) and len(seen) == 20


@pytest.mark.parametrize("v", [None, -1.0, 1.0])
def test_ancestral_steps_add_noise_of_the_posteriors_width(v):
    """Told that all is 0, a step leaves from_noised x and adds sqrt(beta tilde) z; with v = 1 sqrt(beta) z."""
    objective = Objective("ddpm", {"x": "clean"}, v is not None, 25)
    noise = normal(4, 5_000)
    steps = objective.chain(noise)
    path: list[torch.Tensor] = []

    def denoise(x, tau):
        path.append(x["x"])
        zero = torch.zeros_like(x["x"])
        return {"x": zero if v is None else torch.cat([zero, zero + v], -1)}

    path.append(sample(objective, denoise, {"x": noise}, 25, sampler="ancestral")["x"])
    generators = row_generators("x", noise)
    for x, after, k in zip(path, path[1:], reversed(range(25)), strict=False):
        added = after - steps.from_noised[k] * x
        if k == 0:
            assert torch.equal(added, torch.zeros_like(added))
            continue
        variance = (steps.log_high if v == 1 else steps.log_low)[k].exp()
        z = torch.cat([torch.randn(1, 5_000, generator=g, dtype=torch.float64) for g in generators])
        assert torch.allclose(added, variance**0.5 * z, atol=1e-9)
        assert abs(added.var() / variance - 1) < 0.06 and abs((added * x).mean()) < 0.06 * variance**0.5


@pytest.mark.parametrize("steps", [1, 2, 25])
@pytest.mark.parametrize("v", [None, 1.0])
def test_the_last_ancestral_step_adds_no_noise(steps, v):
    objective, noise = Objective("ddpm", {"x": "clean"}, v is not None, 25), normal(4, 6)

    def denoise(x, tau):
        half = torch.full_like(x["x"], 0.5)
        return {"x": half if v is None else torch.cat([half, half * 0 + v], -1)}

    assert torch.equal(sample(objective, denoise, {"x": noise}, steps, sampler="ancestral")["x"], 0 * noise + 0.5)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_the_same_noise_gives_the_same_data_alone_or_among_others(sampler):
    noise = {"x": normal(3, 4, 2), "y": normal(3, 4, 2)}

    def run(noise):
        return sample(DDPM, lambda x, tau: {f: answer(x[f], tau) for f in x}, noise, 10, sampler=sampler)

    together = run(noise)
    for i in range(3):
        alone = run({"x": noise["x"][i : i + 1]})
        assert torch.equal(alone["x"][0], together["x"][i])
    assert torch.equal(together["x"], together["y"]) == (sampler == "ddim")  # like noise, yet other draws on the way


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 250])
def test_ancestral_steps_are_evenly_spaced_between_both_ends(steps):
    times = _scheduler(DDPM, "ancestral", steps).timesteps.tolist()
    assert times[0] == 999 and (times[-1] == 0 or steps == 1) and len(times) == steps
    if steps > 1:
        assert times == np.linspace(0, 999, steps).round()[::-1].tolist()


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("said", ["velocity", "clean", "noise"])
@pytest.mark.parametrize(("kind", "sampler"), ALL)
def test_a_perfect_denoiser_recovers_one_clean_sample(kind, sampler, said, steps):
    objective = Objective(kind, {"x": said} if kind == "ddpm" or said != "noise" else {})
    x0, noise = normal(2, 5), normal(2, 5, seed=1)

    def perfect(x, tau):
        tau_B = torch.full((2,), tau, dtype=torch.float64)
        signal = objective.mix(torch.ones_like(x0), torch.zeros_like(x0), tau_B)
        width = objective.mix(torch.zeros_like(x0), torch.ones_like(x0), tau_B)
        return {"x": objective.target("x", x0, (x["x"] - signal * x0) / width, tau_B)}

    assert torch.allclose(sample(objective, perfect, {"x": noise}, steps, sampler=sampler)["x"], x0, atol=1e-5)


@pytest.mark.parametrize(("kind", "sampler"), ALL)
def test_samples_have_the_distribution_of_the_data(kind, sampler):
    """Data N(0.5, 0.3^2): what is clean is known best, and many small steps must end there."""
    objective, mean, var = Objective(kind, {"x": "clean"}, train_steps=100, schedule="cosine"), 0.5, 0.09

    def best(x, tau):
        tau_B = torch.full((1,), tau, dtype=torch.float64)
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        signal, width = objective.mix(one, zero, tau_B), objective.mix(zero, one, tau_B)
        return {"x": mean + signal * var / (signal**2 * var + width**2) * (x["x"] - signal * mean)}

    out = sample(objective, best, {"x": normal(4, 2_500)}, 100, sampler=sampler)["x"]
    assert abs(out.mean() - mean) < 0.02 and abs(out.std() - var**0.5) < 0.02


def test_heun_is_of_second_order():
    """The flow of N(0, 0.25) to N(0, 1) is known: halving the step halves Euler's error and quarters Heun's."""

    def velocity(x, tau):
        return {"x": (tau - 0.25 * (1 - tau)) / (0.25 * (1 - tau) ** 2 + tau**2) * x["x"]}

    noise = torch.ones(1, 1, dtype=torch.float64)
    for sampler, ratio in (("euler", 2), ("heun", 4)):
        off = [float((sample(FLOW, velocity, {"x": noise}, n, sampler=sampler)["x"] - 0.5).abs()) for n in (100, 200)]
        assert abs(off[0] / off[1] - ratio) < 0.2 * ratio


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_network_that_has_learned_nothing_says_zero(steps):
    silent = sample(CLEAN, lambda x, tau: {"x": torch.zeros_like(x["x"])}, {"x": normal(4)}, steps)
    assert torch.allclose(silent["x"], torch.zeros(4, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize(("kind", "sampler"), ALL)
def test_what_holds_after_a_step_is_seen_by_the_next(kind, sampler):
    seen, at = [], []

    def denoise(x, tau):
        seen.append(x["x"].clone())
        at.append(tau)
        return {"x": torch.ones_like(x["x"])}

    def after(x, tau):
        return {"x": x["x"].index_fill(1, torch.tensor(0), 9.0 + tau)}

    out = sample(Objective(kind), denoise, {"x": torch.zeros(1, 3)}, 4, after, sampler=sampler)
    assert all(torch.allclose(x[0, 0], torch.tensor(9 + tau)) for x, tau in zip(seen, at, strict=True))
    assert out["x"][0, 0] == 9 and len(seen) == (7 if sampler == "heun" else 4)


@pytest.mark.parametrize("sampler", SAMPLERS["ddpm"])
def test_what_is_said_to_be_clean_can_be_held(sampler):
    """At the end of the cosine hardly any signal is left: a small error of the noise is a huge one of the data."""
    objective, noise = Objective("ddpm", train_steps=100, schedule="cosine"), {"x": normal(8, 5)}

    def nearly(x, tau):
        return {"x": 0.99 * x["x"]}

    free = sample(objective, nearly, noise, 10, sampler=sampler)["x"]
    held = sample(objective, nearly, noise, 10, sampler=sampler, clip={"x": 1.0})["x"]
    assert held.abs().max() <= 1 < free.abs().max()


@pytest.mark.parametrize(
    ("kind", "sampler", "steps", "words"),
    [
        ("flow", "auto", 0, "steps=0: expected 1 or more"),
        ("flow", "ddim", 2, "sampler='ddim': objective=flow has 'euler', 'heun'"),
        ("ddpm", "heun", 2, "sampler='heun': objective=ddpm has 'ddim', 'ancestral', 'dpmsolver\\+\\+'"),
        ("ddpm", "auto", 11, "steps=11 does not divide the 10 steps"),
        ("ddpm", "dpmsolver++", 3, "steps=3 does not divide the 10 steps"),
        ("ddpm", "ancestral", 11, "steps=11 is more than the 10 steps"),
    ],
)
def test_samplers_and_their_steps_are_checked(kind, sampler, steps, words):
    with pytest.raises(ValueError, match=words):
        sample(Objective(kind, train_steps=10), lambda x, tau: x, {"x": torch.zeros(1)}, steps, sampler=sampler)
