"""What is said, how it is judged, and the variational bound, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.distributions import Normal, kl_divergence

from padpolicy.diffusion import path
from padpolicy.diffusion.objective import VB_WEIGHT, Objective, bin_log_likelihood

FLOW, CLEAN = Objective("flow"), Objective("flow", {"x": "clean"})
SAID = [("flow", "velocity"), ("flow", "clean"), ("ddpm", "velocity"), ("ddpm", "clean"), ("ddpm", "noise")]
SCHEDULES = [("linear", 1.0), ("cosine", 1.0), ("shifted", 0.5)]


def drawn(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, noise


@pytest.mark.parametrize("objective", [FLOW, Objective("ddpm"), Objective("ddpm", schedule="cosine")])
def test_tau_zero_is_exactly_clean_and_one_is_noise(objective):
    x0, noise = drawn(3, 4, 2)
    assert torch.equal(objective.mix(x0, noise, torch.zeros(3).double()), x0)
    assert torch.allclose(objective.mix(x0, noise, torch.ones(3).double()), noise, atol=0.03)


@pytest.mark.parametrize(("kind", "said"), SAID)
def test_a_perfect_answer_costs_nothing_and_implies_what_is_clean(kind, said):
    objective = Objective(kind, {"x": said}, schedule="cosine", train_steps=100)
    x0, noise = drawn(8, 3)
    tau = (torch.arange(8).double() + 1) / 10
    target = objective.target("x", x0, noise, tau)
    x = objective.mix(x0, noise, tau)
    assert torch.allclose(objective.clean("x", target, x, tau), x0, atol=1e-6)
    assert torch.equal(objective.error("x", target, x0, noise, tau), torch.zeros_like(x0))
    assert torch.allclose(objective.error("x", target + 2, x0, noise, tau), torch.full_like(x0, 4.0))


def test_the_velocity_of_ddpm_is_diffusers():
    objective, reference = Objective("ddpm", {"x": "velocity"}), DDPMScheduler(1000, 1e-4, 0.02, "linear")
    x0, noise = drawn(4, 3)
    k = torch.tensor([0, 10, 500, 999])
    velocity = objective.target("x", x0, noise, (k + 1) / 1000)
    assert torch.allclose(velocity, reference.get_velocity(x0, noise, k), atol=1e-5)
    unnamed = objective.target("y", x0, noise, (k + 1) / 1000)
    assert torch.equal(unnamed, noise)


@pytest.mark.parametrize(
    ("kind", "said", "message"),
    [
        ("flow", "noise", "flow: the network says 'velocity' or 'clean', not 'noise' .of x"),
        ("ddpm", "epsilon", "ddpm: the network says 'velocity' or 'clean' or 'noise', not 'epsilon'"),
        ("edm", "clean", "objective='edm': expected 'flow' or 'ddpm'"),
    ],
)
def test_what_cannot_be_said_is_refused(kind, said, message):
    with pytest.raises(ValueError, match=message):
        Objective(kind, {"x": said})


def test_times_are_trained_where_they_are_sampled():
    tau = torch.tensor([0.0, 0.04, 0.1001, 0.99])
    assert torch.equal(FLOW.time(tau), tau)
    assert torch.allclose(Objective("ddpm", train_steps=10).time(tau), torch.tensor([0.0, 0.1, 0.2, 1.0]))


def test_the_error_of_a_clean_answer_is_that_of_its_velocity_times_tau_squared():
    (x0, noise), tau = drawn(8, 3), torch.linspace(0.1, 1, 8)
    x, clean = FLOW.mix(x0, noise, tau.double()), drawn(8, 3, seed=1)[0]
    velocity = torch.stack([CLEAN.velocity("x", clean[i], x[i], float(tau[i])) for i in range(8)])
    of_clean = CLEAN.error("x", clean, x0, noise, tau)
    assert torch.allclose(of_clean, tau[:, None] ** 2 * FLOW.error("x", velocity, x0, noise, tau), rtol=1e-5)
    assert not torch.allclose(of_clean, CLEAN.error("another", clean, x0, noise, tau), rtol=1e-3)


# -- the bound ------------------------------------------------------------------------------------------------------


def test_a_learned_variance_lies_between_its_bounds():
    objective, k = Objective("ddpm", learn_variance=True), torch.tensor([0, 1, 50, 999])
    low, high = (objective.log_variance(torch.full((4,), v, dtype=torch.float64), k) for v in (-1.0, 1.0))
    assert torch.equal(low, objective.chain(low).log_low[k]) and torch.equal(high, objective.chain(low).log_high[k])
    between = torch.stack([objective.log_variance(torch.full((4,), v), k) for v in np.linspace(-1, 1, 9)])
    assert (between.diff(dim=0) >= 0).all() and (low < high).all()


@pytest.mark.parametrize("v", [None, -1.0, 0.3, 1.0])
def test_a_term_of_the_bound_is_the_divergence_of_two_gaussians(v):
    objective, k = Objective("ddpm"), torch.tensor([1, 50, 700])
    (x0, noise), said = drawn(3, 4), drawn(3, 4, seed=1)[0]
    x = objective.mix(x0, noise, (k + 1) / 1000)
    steps = objective.chain(x)
    clean, noised, width = (t[k][:, None] for t in (steps.from_clean, steps.from_noised, steps.variance))
    true = Normal(clean * x0 + noised * x, width.sqrt())
    log_var = width.log() if v is None else objective.log_variance(torch.full_like(x, v), k)
    model = Normal(clean * said + noised * x, torch.exp(0.5 * log_var))
    v_like = None if v is None else torch.full_like(x0, v)
    bound = objective.bound(said, v_like, x0, x, (k + 1) / 1000)
    assert torch.allclose(bound, kl_divergence(true, model) / math.log(2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mean", [-1.2, -0.999, 0.1, 0.97])
@pytest.mark.parametrize("std", [0.002, 0.05, 3.0])
def test_the_bins_of_the_last_step_share_one(mean, std):
    """256 of them, 2 / 255 wide, the outermost open."""
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    log_p = bin_log_likelihood(values, torch.tensor(mean), torch.tensor(2 * math.log(std), dtype=torch.float64))
    assert abs(log_p.exp().sum() - 1) < 1e-9
    inner = Normal(mean, std).cdf(values + 1 / 255) - Normal(mean, std).cdf(values - 1 / 255)
    assert torch.allclose(log_p[1:-1].exp(), inner[1:-1].clamp(min=1e-12), atol=1e-9)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("schedule", "shift"), SCHEDULES)
def test_the_bound_of_a_gaussian_is_its_entropy(schedule, shift, learned):
    """x0 ~ N(0, s^2), a perfect predictor, all K steps summed; expectations by Gauss-Hermite quadrature.

    With the best variance the reverse chain is exact, and the bound is the entropy of x0 and how far x_K is from pure
    noise. With the posterior's, each step costs the square of what is not known of x0 besides.
    """
    K, s = 50, 0.2
    objective = Objective("ddpm", {"x": "noise"}, learned, K, schedule, shift, "bound")
    steps = path.chain(K, schedule, shift)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    x0 = torch.from_numpy(s * np.repeat(nodes, 40)).expand(K, -1)
    noise = torch.from_numpy(np.tile(nodes, 40)).expand(K, -1)
    tau = (torch.arange(K) + 1) / K
    power, width = steps.signal**2 * s**2 + steps.noise**2, s**2 * steps.noise**2  # of x_k; of x0 given it, times power
    unknown = width / power
    x = objective.mix(x0, noise, tau)
    best = (steps.signal * s**2 / power)[:, None] * x
    out = (x - steps.signal[:, None] * best) / steps.noise[:, None]
    reverse = steps.variance + steps.from_clean**2 * unknown
    if learned:
        v = 2 * (reverse.log() - steps.log_low) / (steps.log_high - steps.log_low) - 1
        assert (v[1:].abs() <= 1).all()
        out = torch.cat([out, v[:, None].expand_as(out)], -1)
    terms = objective.error("x", out, x0, noise, tau).numpy() @ np.outer(weights, weights).ravel() / K * math.log(2)

    def last(std: float) -> float:
        """E[-log P(bin)] of an error of the mean ~ N(0, unknown at k = 0)."""
        d, deep = math.sqrt(unknown[0]) * torch.from_numpy(nodes), Normal(0, std)
        p = (deep.cdf(d + 1 / 255) - deep.cdf(d - 1 / 255)).clamp(min=1e-12)
        return float(-(torch.from_numpy(weights) * p.log()).sum())

    if learned:
        entropy = 0.5 * math.log(2 * math.pi * math.e * s**2)
        far = 0.5 * (power[-1] - 1 - math.log(power[-1]))
        prior = 0.5 * (power[-1] - 1 - math.log(steps.noise[-1] ** 2))
        first = 0.5 * math.log(2 * math.pi * math.e * unknown[0])
        expected = entropy + far - prior - first + last(math.sqrt(unknown[0]))
    else:
        expected = (steps.from_clean**2 * unknown / (2 * steps.log_low.exp()))[1:].sum()
        expected += last(math.exp(0.5 * steps.log_low[0]))
    assert abs(terms.sum() - expected) < 1e-5 * abs(expected)


@pytest.mark.parametrize("said", ["noise", "velocity", "clean"])
def test_only_the_variance_learns_from_the_hybrid_bound(said):
    (x0, noise), tau = drawn(5, 4), torch.tensor([0.001, 0.002, 0.2, 0.6, 1.0])
    losses = {}
    for loss, learned in (("auto", True), ("hybrid", True), ("bound", True), ("simple", False), ("auto", False)):
        out = (0.3 * torch.cat([noise, x0], -1)[:, : 8 if learned else 4]).requires_grad_()
        error = Objective("ddpm", {"x": said}, learned, loss=loss).error("x", out, x0, noise, tau)
        (gradient,) = torch.autograd.grad(error.sum(), out)
        losses[loss, learned] = error.detach(), gradient
    hybrid, bound, simple = losses["hybrid", True], losses["bound", True], losses["simple", False]
    assert torch.allclose(hybrid[0], simple[0] + VB_WEIGHT * bound[0], rtol=1e-9)
    assert torch.allclose(hybrid[1][:, :4], simple[1])
    assert torch.allclose(hybrid[1][:, 4:], VB_WEIGHT * bound[1][:, 4:])
    assert bound[1][:, :4].abs().sum() > 0
    assert torch.equal(losses["auto", True][0], hybrid[0]) and torch.equal(losses["auto", False][0], simple[0])
