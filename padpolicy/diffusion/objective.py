"""What the network is trained to say about a noised field (what is clean, the velocity or the noise), and its loss.

Source:  flow matching, arXiv:2210.02747; DDPM, arXiv:2006.11239; v-prediction, arXiv:2202.00512; learned variance,
arXiv:2102.09672, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from padpolicy.diffusion import path

VB_WEIGHT = 1e-3  # lambda of the hybrid loss (2102.09672, eq. 16), for a bound in bits per element summed over K steps
BIN = 2 / 255  # width of a value of an 8-bit picture in [-1, 1]


@dataclass(frozen=True)
class Objective:
    """What is said and how it is judged.

    kind: "flow" or "ddpm".   says: field -> "velocity", "clean" or, ddpm only, "noise"; a field that is not named says
    the velocity under flow and the noise under ddpm. The velocity of ddpm is signal * noise - noise's share * x0.
    The others are for ddpm only.   loss: "simple", "bound", "hybrid", or "auto": hybrid if a variance is learned.

    A network that says what is clean says exactly 0 before it has learned anything: of a future told as its change,
    that nothing moves. One that says the velocity must first learn to hand the noise through. Its loss is not weighted
    by tau: as the loss of the implied velocity (1 / tau^2) it would be almost blind to large tau, where the future can
    only be told from the observation and the actions (another episode's actions raised the error of a world model by
    19 % instead of 23 % after the same 7200 samples).

    Raises:  ValueError for an unknown kind, and for an answer that the kind does not have.
    """

    kind: str = "flow"
    says: Mapping[str, str] = field(default_factory=dict)
    learn_variance: bool = False
    train_steps: int = 1000
    schedule: str = "linear"
    shift: float = 1.0
    loss: str = "auto"

    def __post_init__(self) -> None:
        known = {"flow": ("velocity", "clean"), "ddpm": ("velocity", "clean", "noise")}
        if self.kind not in known:
            raise ValueError(f"objective={self.kind!r}: expected {' or '.join(map(repr, known))}")
        for name, said in self.says.items():
            if said not in known[self.kind]:
                has = " or ".join(map(repr, known[self.kind]))
                raise ValueError(f"objective={self.kind}: the network says {has}, not {said!r} (of {name})")

    @property
    def out_factor(self) -> int:
        """How many numbers the network predicts per element."""
        return 2 if self.learn_variance else 1

    def chain(self, x: Tensor) -> path.Chain:
        """The schedule (ddpm), of the dtype of x and on its device."""
        return path.chain(self.train_steps, self.schedule, self.shift, x.dtype, x.device)

    def said(self, field: str) -> str:
        """What the network says of a field."""
        return self.says.get(field, "velocity" if self.kind == "flow" else "noise")

    def time(self, tau_B: Tensor) -> Tensor:
        """A drawn noise time as it is trained: under ddpm the end of the step that it falls into; 0 stays 0."""
        return tau_B if self.kind == "flow" else path.to_step(tau_B, self.train_steps)

    def mix(self, x0: Tensor, noise: Tensor, tau_B: Tensor) -> Tensor:
        """The noised field at tau. tau = 0 gives x0 exactly."""
        if self.kind == "flow":
            return path.flow_mix(x0, noise, tau_B)
        return path.ddpm_mix(x0, noise, tau_B, self.chain(x0))

    def target(self, field: str, x0: Tensor, noise: Tensor, tau_B: Tensor) -> Tensor:
        """What a perfect network would say of a field."""
        said = self.said(field)
        if said != "velocity":
            return x0 if said == "clean" else noise
        if self.kind == "flow":
            return noise - x0
        k_B, steps = path.step_of(tau_B, self.train_steps), self.chain(x0)
        return path.at(steps.signal, k_B, x0) * noise - path.at(steps.noise, k_B, x0) * x0

    def clean(self, field: str, out: Tensor, x: Tensor, tau_B: Tensor) -> Tensor:
        """The x0 that an answer implies of a noised field x at tau > 0: the inverse of `target`."""
        said = self.said(field)
        if said == "clean":
            return out
        if self.kind == "flow":
            return x - path.like(tau_B, x) * out
        k_B, steps = path.step_of(tau_B, self.train_steps), self.chain(x)
        signal, noise = path.at(steps.signal, k_B, x), path.at(steps.noise, k_B, x)
        return (x - noise * out) / signal if said == "noise" else signal * x - noise * out

    def velocity(self, field: str, out: Tensor, x: Tensor, tau: float) -> Tensor:
        """dx/dtau of a noised field x at tau > 0, from the network's answer (flow)."""
        return (x - out) / tau if self.said(field) == "clean" else out

    def error(
        self, field: str, out: Tensor, x0: Tensor, noise: Tensor, tau_B: Tensor, channel_axis: int = -1
    ) -> Tensor:
        """Elementwise loss, shaped like x0.

        simple: squared error.   bound: K times `bound`, whose mean over uniform times is the whole bound.
        hybrid: the first, and 1e-3 of the second, from which only the variance learns.

        Args:  out: the network's answer; with a learned variance twice as long on `channel_axis` (mean part first).
        """
        mean, v = split_variance(out, x0, channel_axis) if self.learn_variance else (out, None)
        loss = self.loss if self.loss != "auto" else "hybrid" if self.learn_variance else "simple"
        simple = (mean - self.target(field, x0, noise, tau_B)).square()
        if loss == "simple":
            return simple
        x = self.mix(x0, noise, tau_B)
        x0_said = self.clean(field, mean if loss == "bound" else mean.detach(), x, tau_B)
        bound = self.train_steps * self.bound(x0_said, v, x0, x, tau_B)
        return bound if loss == "bound" else simple + VB_WEIGHT * bound

    def bound(self, x0_said: Tensor, v: Tensor | None, x0: Tensor, x: Tensor, tau_B: Tensor) -> Tensor:
        """A step's term of the variational bound, per element in bits (ddpm).

        KL(q(x_{k-1} | x_k, x0) || p(x_{k-1} | x_k)); at k = 0 the likelihood of x0's bin, see `bin_log_likelihood`.

        Args:  x0_said: the x0 that the network's answer implies.   x: the noised field.
               v: -1 for the posterior's variance, 1 for beta, between them in logarithms; None: the posterior's.
        Source:  2006.11239, eq. 5 and 13; 2102.09672, eq. 15.
        """
        k_B, steps = path.step_of(tau_B, self.train_steps), self.chain(x)
        true_log_var = path.at(steps.log_low, k_B, x)
        log_var = true_log_var if v is None else self.log_variance(v, k_B)
        mean = path.at(steps.from_clean, k_B, x) * x0_said + path.at(steps.from_noised, k_B, x) * x
        apart = path.at(steps.from_clean, k_B, x) * (x0 - x0_said)  # true mean - the model's
        wider = true_log_var - log_var
        kl = 0.5 * (wider.exp() - 1 - wider + apart.square() * torch.exp(-log_var))
        first = -bin_log_likelihood(x0, mean, log_var)
        return torch.where(path.like(k_B == 0, x), first, kl) / np.log(2)

    def log_variance(self, v: Tensor, k_B: Tensor) -> Tensor:
        """The learned log variance of step k: between the posterior's (v = -1) and beta (v = 1)."""
        low, high = path.at(self.chain(v).log_low, k_B, v), path.at(self.chain(v).log_high, k_B, v)
        return (v + 1) / 2 * high + (1 - v) / 2 * low


def bin_log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Logarithm of the probability of x0's bin of 2 / 255 in [-1, 1], the outermost bins open, per element.

    Made for 8-bit pictures. DiT and PAD take it for latents and metres as it is, and so it is here: what stands beside
    theirs must be trained by their loss. It is the last of K steps, and in the hybrid loss it moves a variance only.

    Source:  DDPM, arXiv:2006.11239, eq. 13.
    """
    scale = torch.exp(-0.5 * log_var)
    above, below = (x0 - mean + BIN / 2) * scale, (x0 - mean - BIN / 2) * scale
    inside = (torch.special.ndtr(above) - torch.special.ndtr(below)).clamp(min=1e-12).log()
    inside = torch.where(x0 < -0.999, torch.special.log_ndtr(above), inside)
    return torch.where(x0 > 0.999, torch.special.log_ndtr(-below), inside)


def split_variance(out: Tensor, x0: Tensor, channel_axis: int) -> tuple[Tensor, Tensor]:
    """The network's answer as (mean part, variance part), both shaped like x0."""
    mean, variance = out.chunk(2, channel_axis)
    return mean.reshape(x0.shape), variance.reshape(x0.shape)
