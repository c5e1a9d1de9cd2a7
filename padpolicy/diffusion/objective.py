"""What the network is trained to say about a noised field: what is clean or the velocity (flow), or the noise (ddpm).

Source:  flow matching, arXiv:2210.02747; DDPM, arXiv:2006.11239; learned variance, arXiv:2102.09672, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from padpolicy.diffusion import path

VB_WEIGHT = 1e-3  # lambda of the hybrid loss (2102.09672, eq. 16), for a bound in bits per element summed over K steps


@dataclass(frozen=True)
class Objective:
    """kind: "flow" or "ddpm".   clean: flow only, the fields of which the network says what is clean; of the others it
    says the velocity.   learn_variance, train_steps: ddpm only.

    A network that says what is clean says exactly 0 before it has learned anything: of a future told as its change,
    that nothing moves. One that says the velocity must first learn to hand the noise through. Its loss is not weighted
    by tau: as the loss of the implied velocity (1 / tau^2) it would be almost blind to large tau, where the future can
    only be told from the observation and the actions (another episode's actions raised the error of a world model by
    19 % instead of 23 % after the same 7200 samples).
    """

    kind: str = "flow"
    clean: frozenset[str] = frozenset()
    learn_variance: bool = False
    train_steps: int = 1000

    @property
    def out_factor(self) -> int:
        """How many numbers the network predicts per element."""
        return 2 if self.learn_variance else 1

    def mix(self, x0: Tensor, noise: Tensor, tau_B: Tensor) -> Tensor:
        """The noised field at tau. tau = 0 gives x0 exactly."""
        if self.kind == "flow":
            return path.flow_mix(x0, noise, tau_B)
        return path.ddpm_mix(x0, noise, tau_B, self.train_steps)

    def velocity(self, field: str, out: Tensor, x: Tensor, tau: float) -> Tensor:
        """dx/dtau of a noised field x at tau > 0, from the network's answer (flow)."""
        return (x - out) / tau if field in self.clean else out

    def error(
        self, field: str, out: Tensor, x0: Tensor, noise: Tensor, tau_B: Tensor, channel_axis: int = -1
    ) -> Tensor:
        """Elementwise loss, shaped like x0.

        Args:  out: the network's answer; with a learned variance twice as long on `channel_axis` (mean part first).
        """
        if self.kind == "flow":
            if field in self.clean:
                return (out - x0).square()
            return (out - (noise - x0)).square()
        if not self.learn_variance:
            return (out - noise).square()
        eps, v = split_variance(out, x0, channel_axis)
        bound = self._bound(eps.detach(), v, x0, self.mix(x0, noise, tau_B), tau_B)
        return (eps - noise).square() + VB_WEIGHT * self.train_steps * bound

    def _bound(self, eps: Tensor, v: Tensor, x0: Tensor, x: Tensor, tau_B: Tensor) -> Tensor:
        """KL(q(x_{k-1} | x_k, x0) || p(x_{k-1} | x_k)) per element, in bits; at k = 0 the Gaussian log-likelihood."""
        k_B = path.step_of(tau_B, self.train_steps)
        true, model_log_var, abar = self._posterior(v, k_B, x0)
        mean, log_var = true(x0, x)
        pred_x0 = (x - path.like((1 - abar).sqrt(), x) * eps) / path.like(abar.sqrt(), x)
        model_mean, _ = true(pred_x0, x)
        squared = (mean - model_mean).square()
        kl = 0.5 * (
            model_log_var - log_var + torch.exp(log_var - model_log_var) + squared * torch.exp(-model_log_var) - 1
        )
        nll = 0.5 * (
            model_log_var
            + (x0 - model_mean).square() * torch.exp(-model_log_var)
            + torch.log(torch.tensor(2 * torch.pi))
        )
        return torch.where(path.like(k_B == 0, x), nll, kl) / torch.log(torch.tensor(2.0))

    def _posterior(self, v: Tensor, k_B: Tensor, x0: Tensor):
        """The closed form of q(x_{k-1} | x_k, x0) (2006.11239, eq. 6-7) and the learned variance between its bounds."""
        table = torch.as_tensor(path.alphas_cumprod(self.train_steps), device=x0.device)
        abar = table[k_B]
        before = torch.where(k_B > 0, table[(k_B - 1).clamp(min=0)], torch.ones_like(abar))
        beta = 1 - abar / before
        variance = beta * (1 - before) / (1 - abar)
        first = table[1] / table[0]  # at k = 0 the posterior has no width: the next step's stands in, as in 2102.09672
        variance = torch.where(k_B > 0, variance, (1 - first) * (1 - table[0]) / (1 - table[1]))
        low, high = path.like(variance.log(), x0).float(), path.like(beta.log(), x0).float()
        share = (v + 1) / 2
        model_log_var = share * high + (1 - share) * low
        c0, cx = (
            (before.sqrt() * beta / (1 - abar)).float(),
            ((1 - beta).sqrt() * (1 - before) / (1 - abar)).float(),
        )

        def posterior(x0_: Tensor, x_: Tensor) -> tuple[Tensor, Tensor]:
            return path.like(c0, x_) * x0_ + path.like(cx, x_) * x_, low.expand_as(x_)

        return posterior, model_log_var, abar.float()


def split_variance(out: Tensor, x0: Tensor, channel_axis: int) -> tuple[Tensor, Tensor]:
    """The network's answer as (mean part, variance part), both shaped like x0."""
    mean, variance = out.chunk(2, channel_axis)
    return mean.reshape(x0.shape), variance.reshape(x0.shape)
