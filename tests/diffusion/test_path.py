"""Schedules, posteriors and laws of time against diffusers and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from padpolicy.diffusion import path

SCHEDULES = [("linear", 1.0), ("cosine", 1.0), ("shifted", 1.0), ("shifted", 0.25)]


@pytest.mark.parametrize("steps", [100, 1000])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_are_those_of_diffusers(schedule, steps):
    name = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]
    reference = DDPMScheduler(steps, 0.1 / steps, 20 / steps, name)
    power = path.alphas_cumprod(steps, schedule)
    assert np.allclose(power, reference.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-9)
    assert np.allclose(1 - power[1:] / power[:-1], reference.betas[1:].numpy(), rtol=1e-5, atol=1e-7)
    k = torch.tensor([0, 10, 50, steps - 1])
    x0, noise = torch.randn(4, 3), torch.randn(4, 3)
    mixed = path.ddpm_mix(x0, noise, (k + 1) / steps, path.chain(steps, schedule, dtype=torch.float32))
    assert torch.allclose(mixed, reference.add_noise(x0, noise, k), atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 0.25, 2.0])
def test_the_shifted_schedule_is_the_cosine_moved_in_log_snr(shift):
    power = path.alphas_cumprod(1000, "shifted", shift)
    log_snr, tau = np.log(power / (1 - power)), np.arange(1, 1001) / 1000
    assert abs(log_snr[-1] - (2 * np.log(shift) - 15)) < 1e-9
    middle = slice(99, 900)
    closed = -2 * np.log(np.tan(np.pi * tau / 2)) + 2 * np.log(shift)
    assert np.abs(log_snr - closed)[middle].max() < 0.02  # its ends stand at +-15 instead of infinity
    unshifted = path.alphas_cumprod(1000, "shifted")
    assert np.allclose(log_snr, np.log(unshifted / (1 - unshifted)) + 2 * np.log(shift), atol=1e-9)
    assert np.abs(unshifted - path.alphas_cumprod(1000, "cosine"))[middle].max() < 0.02


@pytest.mark.parametrize(("schedule", "shift"), SCHEDULES)
def test_posteriors_are_those_of_bayes(schedule, shift):
    """q(x_{k-1} | x_k, x0) is proportional to q(x_{k-1} | x0) q(x_k | x_{k-1}): precisions add up."""
    power, tables = path.alphas_cumprod(200, schedule, shift), path.chain(200, schedule, shift)
    steps = path.Chain(*(table.numpy() for table in vars(tables).values()))
    before, alpha = power[:-1], power[1:] / power[:-1]
    variance = 1 / (1 / (1 - before) + alpha / (1 - alpha))
    assert np.allclose(steps.variance[1:], variance, rtol=1e-9)
    assert np.allclose(steps.from_clean[1:], variance * np.sqrt(before) / (1 - before), rtol=1e-9)
    assert np.allclose(steps.from_noised[1:], variance * np.sqrt(alpha) / (1 - alpha), rtol=1e-9)
    assert np.allclose(steps.signal**2 + steps.noise**2, 1)
    assert (steps.from_clean[0], steps.from_noised[0], steps.variance[0]) == (1, 0, 0)
    assert (steps.log_low < steps.log_high).all() and np.allclose(np.exp(steps.log_low[1:]), variance)


@pytest.mark.parametrize(("schedule", "shift"), SCHEDULES)
def test_noise_grows_with_tau(schedule, shift):
    tau, steps = torch.linspace(0, 1, 11), path.chain(1000, schedule, shift, torch.float32)
    signal = path.ddpm_mix(torch.ones(11, 1), torch.zeros(11, 1), tau, steps)[:, 0]
    noise = path.ddpm_mix(torch.zeros(11, 1), torch.ones(11, 1), tau, steps)[:, 0]
    assert (signal.diff() < 0).all() and (noise.diff() >= 0).all() and signal[0] == 1 and noise[0] == 0


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(ValueError, match="'sigmoid': expected 'linear', 'cosine' or 'shifted'"):
        path.alphas_cumprod(10, "sigmoid")


def test_every_step_of_a_schedule_is_hit_exactly_and_equally_often():
    for steps in (10, 100, 1000):
        k = torch.arange(steps)
        assert torch.equal(path.step_of((k + 1) / steps, steps), k)
        uniform = (torch.arange(7 * steps) + 0.5) / (7 * steps)
        tau = path.to_step(uniform, steps)
        assert torch.equal(path.step_of(tau, steps).bincount(), torch.full((steps,), 7))
        assert (tau >= uniform).all() and (tau - uniform <= 1 / steps + 1e-6).all()
    assert path.to_step(torch.zeros(1), 10) == 0


DENSITY = [1.0, 4.0, 0.5, 2.5]
LAWS = {  # P(tau < t)
    "uniform": lambda t: t,
    "beta": lambda t: t**1.5,
    "logit_normal": lambda t: torch.special.ndtr(torch.logit(t)),
    "importance": lambda t: torch.from_numpy(np.interp(t, [0, 0.25, 0.5, 0.75, 1], [0, 0.125, 0.625, 0.6875, 1])),
}


@pytest.mark.parametrize("law", LAWS)
def test_histograms_of_time_are_their_densities(law):
    u = (torch.arange(100_000) + 0.5) / 100_000
    tau = path.draw_tau(u, law, DENSITY)
    assert (tau.diff() >= 0).all() and tau.min() >= 0 and tau.max() <= 1
    edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    share = torch.histc(tau, 20, 0, 1).double() / len(tau)
    assert torch.allclose(share, LAWS[law](edges).diff(), atol=2e-4)


def test_losses_of_times_drawn_by_importance_keep_their_mean():
    tau = path.draw_tau((torch.arange(100_000) + 0.5) / 100_000, "importance", DENSITY)
    weight = path.tau_weight(tau, DENSITY)
    for power in range(4):
        assert abs((weight * tau**power).mean() - 1 / (power + 1)) < 1e-4
    assert abs(tau.mean() - 1 / 2) > 0.01
    assert torch.equal(path.draw_tau(torch.tensor([0.0, 0.3, 0.9]), "importance", [7.0]), torch.tensor([0.0, 0.3, 0.9]))


def test_an_unknown_law_is_an_error():
    with pytest.raises(ValueError, match="'cosine': expected 'uniform', 'logit_normal', 'beta' or 'importance'"):
        path.draw_tau(torch.rand(2), "cosine")
