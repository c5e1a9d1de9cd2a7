"""The way from data to noise: tau in [0, 1] -> how much of each is in the mixture. The only place that knows schedules.

tau is noise time: 0 exactly clean, 1 pure noise. DDPM's step k of K is tau = (k + 1) / K.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def like(tau_B: Tensor, x: Tensor) -> Tensor:
    """tau (B,) shaped to be broadcast over x (B, ...)."""
    return tau_B.reshape(-1, *([1] * (x.ndim - 1)))


def flow_mix(x0: Tensor, noise: Tensor, tau_B: Tensor) -> Tensor:
    """The straight path, (1 - tau) x0 + tau noise.  Source: rectified flow, arXiv:2209.03003."""
    return torch.lerp(x0, noise, like(tau_B, x0))


@lru_cache(maxsize=8)
def alphas_cumprod(train_steps: int) -> np.ndarray:
    """Remaining signal power after step k, (K,) float64, for the linear schedule beta 1e-4 .. 0.02 (DDPM, 2006.11239).

    For K other than 1000 the betas are scaled by 1000 / K, so that the end is equally noisy.
    """
    scale = 1000 / train_steps
    beta = np.linspace(1e-4 * scale, 0.02 * scale, train_steps, dtype=np.float64)
    return np.cumprod(1 - beta)


def step_of(tau_B: Tensor, train_steps: int) -> Tensor:
    """tau -> DDPM step k, int64 in [0, K - 1]; tau = (k + 1) / K is hit exactly."""
    return ((tau_B * train_steps).round().long() - 1).clamp(0, train_steps - 1)


def ddpm_mix(x0: Tensor, noise: Tensor, tau_B: Tensor, train_steps: int) -> Tensor:
    """sqrt(abar_k) x0 + sqrt(1 - abar_k) noise; exactly x0 where tau is 0.  Source: DDPM, arXiv:2006.11239, eq. 4."""
    table = torch.as_tensor(alphas_cumprod(train_steps), dtype=torch.float32, device=x0.device)
    abar = torch.where(tau_B > 0, table[step_of(tau_B, train_steps)], torch.ones_like(tau_B))
    return like(abar.sqrt(), x0) * x0 + like((1 - abar).sqrt(), x0) * noise


# Laws of tau while training: u uniform in [0, 1) -> tau.

LOGIT_NORMAL_STD = 1.0  # arXiv:2403.03206, section 3.1: middle times count most


def draw_tau(u_B: Tensor, law: str) -> Tensor:
    """A uniform number as a noise time: law "uniform", "logit_normal", or "beta" (Beta(1.5, 1), arXiv:2410.24164).

    Each is the inverse of the law's distribution function, so that one uniform number per sample is all it takes.
    """
    if law == "uniform":
        return u_B
    if law == "beta":  # P(tau < t) = t^1.5: weight near noise, as for action chunks in pi0
        return u_B.pow(1 / 1.5)
    if law == "logit_normal":
        return torch.sigmoid(LOGIT_NORMAL_STD * torch.special.ndtri(u_B.double().clamp(1e-6, 1 - 1e-6))).to(u_B.dtype)
    raise ValueError(f"tau law {law!r}: expected 'uniform', 'logit_normal' or 'beta'")
