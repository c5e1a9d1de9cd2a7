"""The way from data to noise: tau in [0, 1] -> how much of each is in the mixture. The only place that knows schedules.

tau is noise time: 0 exactly clean, 1 pure noise. DDPM's step k of K is tau = (k + 1) / K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

FARTHEST_LOG_SNR = 15.0  # of the shifted schedule, either way: neither the signal nor the noise ever vanishes


def like(tau_B: Tensor, x: Tensor) -> Tensor:
    """tau (B,) shaped to be broadcast over x (B, ...)."""
    return tau_B.reshape(-1, *([1] * (x.ndim - 1)))


def flow_mix(x0: Tensor, noise: Tensor, tau_B: Tensor) -> Tensor:
    """The straight path, (1 - tau) x0 + tau noise.  Source: rectified flow, arXiv:2209.03003."""
    return torch.lerp(x0, noise, like(tau_B, x0))


@lru_cache(maxsize=8)
def alphas_cumprod(train_steps: int, schedule: str = "linear", shift: float = 1.0) -> np.ndarray:
    """Remaining signal power after step k, (K,) float64. Every other number of a chain follows from this table.

    linear   beta 1e-4 .. 0.02 (DDPM, 2006.11239); for K other than 1000 scaled by 1000 / K, to end equally noisy
    cosine   cos^2 with an offset of 0.008 and betas of at most 0.999 (2102.09672, eq. 17)
    shifted  log-SNR -2 log tan(pi tau / 2) + 2 log(shift), for data `1 / shift` times as wide as those that the
             cosine suits (simple diffusion, 2301.11093, section 3.1)
    """
    if schedule == "linear":
        scale = 1000 / train_steps
        beta = np.linspace(1e-4 * scale, 0.02 * scale, train_steps, dtype=np.float64)
        return np.cumprod(1 - beta)
    if schedule == "cosine":
        power = np.cos((np.arange(train_steps + 1) / train_steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.cumprod(1 - np.minimum(1 - power[1:] / power[:-1], 0.999))
    if schedule == "shifted":
        first, last = np.arctan(np.exp([-FARTHEST_LOG_SNR / 2, FARTHEST_LOG_SNR / 2]))
        tau = np.arange(1, train_steps + 1) / train_steps
        return 1 / (1 + (np.tan(first + tau * (last - first)) / shift) ** 2)
    raise ValueError(f"schedule {schedule!r}: expected 'linear', 'cosine' or 'shifted'")


@dataclass(frozen=True)
class Chain:
    """A schedule in the numbers that its formulas need, each (K,), by step k.

    x_k = signal x0 + noise z;   q(x_{k-1} | x_k, x0) = N(from_clean x0 + from_noised x_k, variance).
    Source:  DDPM, arXiv:2006.11239, eq. 4, 6 and 7.
    """

    signal: Tensor
    noise: Tensor
    from_clean: Tensor
    from_noised: Tensor
    variance: Tensor  # beta tilde; 0 at k = 0, where all is known
    log_low: Tensor  # its logarithm; at k = 0 that of k = 1 stands in (2102.09672)
    log_high: Tensor  # the logarithm of beta, the widest that a learned variance may be


@lru_cache(maxsize=16)
def chain(
    train_steps: int,
    schedule: str = "linear",
    shift: float = 1.0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Chain:
    """The numbers of a schedule of at least two steps, computed in float64 and kept where they are used."""
    power = alphas_cumprod(train_steps, schedule, shift)
    before = np.concatenate([[1.0], power[:-1]])
    beta = 1 - power / before
    variance = beta * (1 - before) / (1 - power)
    tables = {
        "signal": np.sqrt(power),
        "noise": np.sqrt(1 - power),
        "from_clean": np.sqrt(before) * beta / (1 - power),
        "from_noised": np.sqrt(power / before) * (1 - before) / (1 - power),
        "variance": variance,
        "log_low": np.log(np.concatenate([variance[1:2], variance[1:]])),
        "log_high": np.log(beta),
    }
    with torch.inference_mode(False):  # a table made while acting serves training, too
        return Chain(**{name: torch.as_tensor(table, dtype=dtype, device=device) for name, table in tables.items()})


def at(table_K: Tensor, k_B: Tensor, x: Tensor) -> Tensor:
    """Entries k of a table, shaped to be broadcast over x (B, ...)."""
    return like(table_K[k_B], x)


def step_of(tau_B: Tensor, train_steps: int) -> Tensor:
    """tau -> DDPM step k, int64 in [0, K - 1]; tau = (k + 1) / K is hit exactly."""
    return ((tau_B * train_steps).round().long() - 1).clamp(0, train_steps - 1)


def to_step(tau_B: Tensor, train_steps: int) -> Tensor:
    """tau -> the end (k + 1) / K of the step it falls into: uniform times give uniform steps. 0 stays 0."""
    k_B = (tau_B * train_steps).long().clamp(max=train_steps - 1)
    return torch.where(tau_B > 0, (k_B + 1) / train_steps, 0.0).to(tau_B.dtype)


def ddpm_mix(x0: Tensor, noise: Tensor, tau_B: Tensor, steps: Chain) -> Tensor:
    """signal x0 + noise z; exactly x0 where tau is 0.  Source: DDPM, arXiv:2006.11239, eq. 4."""
    k_B, clean = step_of(tau_B, len(steps.signal)), like(tau_B == 0, x0)
    mixed = at(steps.signal, k_B, x0) * x0 + at(steps.noise, k_B, x0) * noise
    return torch.where(clean, x0, mixed)


# Laws of tau while training: u uniform in [0, 1) -> tau.

LOGIT_NORMAL_STD = 1.0  # arXiv:2403.03206, section 3.1: middle times count most


def draw_tau(u_B: Tensor, law: str, density: Sequence[float] = ()) -> Tensor:
    """A uniform number as a noise time.

    law: "uniform" (DDPM's), "logit_normal", "beta" (Beta(1.5, 1), arXiv:2410.24164), or "importance": as dense as
    `density` says of equal bins of [0, 1], each more than 0, in any unit. Losses of times drawn so are to be
    multiplied by `tau_weight`.

    Each is the inverse of the law's distribution function, so that one uniform number per sample is all it takes.
    """
    if law == "uniform":
        return u_B
    if law == "beta":  # P(tau < t) = t^1.5: weight near noise, as for action chunks in pi0
        return u_B.pow(1 / 1.5)
    if law == "logit_normal":
        return torch.sigmoid(LOGIT_NORMAL_STD * torch.special.ndtri(u_B.double().clamp(1e-6, 1 - 1e-6))).to(u_B.dtype)
    if law == "importance":
        share = torch.tensor(density, dtype=torch.float64, device=u_B.device)
        share = share / share.sum()
        below, u = share.cumsum(0) - share, u_B.double()
        bin_B = torch.searchsorted(below[1:], u, right=True)
        return ((bin_B + (u - below[bin_B]) / share[bin_B]) / len(share)).clamp(0, 1).to(u_B.dtype)
    raise ValueError(f"tau law {law!r}: expected 'uniform', 'logit_normal', 'beta' or 'importance'")


def tau_weight(tau_B: Tensor, density: Sequence[float]) -> Tensor:
    """1 / density of times drawn by importance: with it a loss has the mean that uniform times would give it."""
    dense = torch.tensor(density, dtype=torch.float64, device=tau_B.device)
    bin_B = (tau_B * len(dense)).long().clamp(max=len(dense) - 1)
    return (dense.mean() / dense[bin_B]).to(tau_B.dtype)
