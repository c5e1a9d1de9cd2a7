"""Paths, objectives and samplers against closed forms and against diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from padpolicy.diffusion import path
from padpolicy.diffusion.guidance import Guidance
from padpolicy.diffusion.objective import Objective
from padpolicy.diffusion.sampler import euler, sample

FLOW, CLEAN, DDPM = Objective("flow"), Objective("flow", frozenset({"x"})), Objective("ddpm")
HYBRID = Objective("ddpm", learn_variance=True)


@pytest.mark.parametrize("objective", [FLOW, DDPM])
def test_tau_zero_is_exactly_clean_and_one_is_noise(objective):
    x0, noise = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    assert torch.equal(objective.mix(x0, noise, torch.zeros(3)), x0)
    assert torch.allclose(objective.mix(x0, noise, torch.ones(3)), noise, atol=0.03)


def test_noise_grows_with_tau():
    tau = torch.linspace(0, 1, 11)
    for objective in (FLOW, DDPM):
        signal = objective.mix(torch.ones(11, 1), torch.zeros(11, 1), tau)[:, 0]
        noise = objective.mix(torch.zeros(11, 1), torch.ones(11, 1), tau)[:, 0]
        assert (signal.diff() < 0).all() and (noise.diff() > 0).all()


def test_the_schedule_is_diffusers_linear_schedule():
    reference = DDPMScheduler(1000, 1e-4, 0.02, "linear")
    assert np.allclose(path.alphas_cumprod(1000), reference.alphas_cumprod.numpy(), atol=1e-6)
    x0, noise, k = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 10, 500, 999])
    mixed = DDPM.mix(x0, noise, (k + 1) / 1000)
    assert torch.allclose(mixed, reference.add_noise(x0, noise, k), atol=1e-6)


def test_every_step_of_a_schedule_is_hit_exactly():
    for steps in (10, 100, 1000):
        k = torch.arange(steps)
        assert torch.equal(path.step_of((k + 1) / steps, steps), k)


@pytest.mark.parametrize("law", ["uniform", "logit_normal", "beta"])
def test_time_laws(law):
    u = torch.linspace(1e-4, 1 - 1e-4, 20_001)
    tau = path.draw_tau(u, law)
    assert (tau.diff() >= 0).all() and tau.min() >= 0 and tau.max() <= 1
    mean = {"uniform": 0.5, "logit_normal": 0.5, "beta": 0.6}[law]
    std = {"uniform": 12**-0.5, "logit_normal": 0.2082, "beta": (0.6 * 0.4 / 3.5) ** 0.5}[law]
    assert abs(tau.mean() - mean) < 1e-3 and abs(tau.std() - std) < 2e-3


def test_an_unknown_law_is_an_error():
    with pytest.raises(ValueError, match="'cosine': expected 'uniform', 'logit_normal' or 'beta'"):
        path.draw_tau(torch.rand(2), "cosine")


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("objective", [FLOW, CLEAN, DDPM])
def test_a_perfect_denoiser_recovers_one_clean_sample(objective, steps):
    x0, start = torch.randn(2, 5), torch.randn(2, 5)

    def perfect(x, tau):
        if objective is FLOW:
            return {"x": (x["x"] - x0) / tau}
        if objective is CLEAN:
            return {"x": x0}
        abar = path.alphas_cumprod(1000)[round(tau * 1000) - 1]
        return {"x": (x["x"] - abar**0.5 * x0) / (1 - abar) ** 0.5}

    assert torch.allclose(sample(objective, perfect, {"x": start}, steps)["x"], x0, atol=1e-4)


def test_the_error_of_a_clean_answer_is_that_of_its_velocity_times_tau_squared():
    x0, noise, tau = torch.randn(8, 3), torch.randn(8, 3), torch.linspace(0.1, 1, 8)
    x, clean = FLOW.mix(x0, noise, tau), torch.randn(8, 3)
    velocity = torch.stack([CLEAN.velocity("x", clean[i], x[i], float(tau[i])) for i in range(8)])
    of_clean = CLEAN.error("x", clean, x0, noise, tau)
    assert torch.allclose(of_clean, tau[:, None] ** 2 * FLOW.error("x", velocity, x0, noise, tau), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(of_clean, CLEAN.error("another", clean, x0, noise, tau), rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_network_that_has_learned_nothing_says_zero(steps):
    silent = sample(CLEAN, lambda x, tau: {"x": torch.zeros_like(x["x"])}, {"x": torch.randn(4)}, steps)
    assert torch.allclose(silent["x"], torch.zeros(4), atol=1e-6)


def test_the_euler_step_is_diffusers():
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    x = mine = torch.randn(2, 3)
    for i, t in enumerate(scheduler.timesteps):
        velocity = torch.sin(x)
        mine = euler(mine, torch.sin(mine), 1 - i / 4, 1 - (i + 1) / 4)
        x = scheduler.step(velocity, t, x).prev_sample
        assert torch.allclose(x, mine, atol=1e-6)


def test_flow_samples_have_the_distribution_of_the_data():
    """Data N(2, 0.5^2): the velocity field is known, and many Euler steps must end there."""
    mean, var = 2.0, 0.25

    def velocity(x, tau):
        total = (1 - tau) ** 2 * var + tau**2
        x0 = mean + (1 - tau) * var / total * (x["x"] - (1 - tau) * mean)
        return {"x": (x["x"] - x0) / tau}

    out = sample(FLOW, velocity, {"x": torch.randn(20_000, generator=torch.Generator().manual_seed(0))}, 200)["x"]
    assert abs(out.mean() - mean) < 0.02 and abs(out.std() - var**0.5) < 0.02


def test_what_holds_after_a_step_is_seen_by_the_next():
    seen = []

    def denoise(x, tau):
        seen.append(x["x"].clone())
        return {"x": torch.ones_like(x["x"])}

    out = sample(
        FLOW, denoise, {"x": torch.zeros(1, 3)}, 3, lambda x, tau: {"x": x["x"].index_fill(1, torch.tensor(0), 9.0)}
    )
    assert all(x[0, 0] == 9 for x in seen) and out["x"][0, 0] == 9


def test_the_learned_variance_lies_between_its_bounds_and_the_bound_is_analytic():
    """For v = 1 the model's variance is beta, for v = -1 the posterior's; with the true mean the KL is closed form."""
    k = torch.tensor([1, 50, 700])
    tau = (k + 1) / 1000
    x0, noise = torch.randn(3, 4), torch.randn(3, 4)
    x = HYBRID.mix(x0, noise, tau)
    tables = path.alphas_cumprod(1000)
    beta = 1 - tables[k] / tables[k - 1]
    posterior = beta * (1 - tables[k - 1]) / (1 - tables[k])
    for v, variance in ((1.0, beta), (-1.0, posterior)):
        bound = HYBRID._bound(noise, torch.full_like(x0, v), x0, x, tau)
        ratio = torch.from_numpy(posterior / variance)
        expected = 0.5 * (ratio - 1 - ratio.log()) / np.log(2)
        assert torch.allclose(bound.mean(1).double(), expected, atol=1e-4)
    assert torch.allclose(
        HYBRID.error("x", torch.cat([noise, -torch.ones_like(noise)], -1), x0, noise, tau), torch.zeros(3, 4), atol=1e-4
    )


def test_guidance_combines_prompts():
    out = torch.tensor([[1.0], [3.0], [0.0], [2.0], [6.0], [1.0]])  # two samples: own, prompt, null
    guidance = Guidance(2.0, prompts=[("push", 3.0)])
    assert guidance.texts("lift") == ["lift", "push", None] and guidance.copies == 3
    assert torch.allclose(guidance.combine(out), torch.tensor([[5.0], [9.0]]))
    assert Guidance().plain and Guidance().texts("lift") == ["lift"]
    assert Guidance(2.0, negative="drop").texts("lift") == ["lift", "drop"]
    with pytest.raises(ValueError, match="sum to 0"):
        Guidance(2.0, prompts=[("push", -1.0)]).combine(out)


def test_step_counts_are_checked():
    with pytest.raises(ValueError, match="steps=0"):
        sample(FLOW, lambda x, tau: x, {"x": torch.zeros(1)}, 0)
    with pytest.raises(ValueError, match="steps=11 does not divide the 10 steps"):
        sample(Objective("ddpm", train_steps=10), lambda x, tau: x, {"x": torch.zeros(1)}, 11)
