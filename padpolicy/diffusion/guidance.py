"""Guidance over text: several prompts and the null text, denoised side by side and combined.

out = null + scale * sum_i w_i (prompt_i - null), with weights that sum to 1; a negative prompt takes the null's place.
Scale 1 with one prompt is no guidance at all.  Source: classifier-free guidance, arXiv:2207.12598, eq. 6;
composition of prompts, arXiv:2206.01714.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """How strongly the words count.

    Args:  scale: 1 is none.   prompts: extra (text, weight) beside the own, of weight 1.   negative: instead of null.
           future_scale: of imagined futures; None: as of actions.
           channels: how many leading channels of an imagined latent are guided (DiT's released sampler: 3 of 4); None:
               all. The others, and a learned variance, are what the prompts say.
    """

    scale: float = 1.0
    prompts: Sequence[tuple[str, float]] = ()
    negative: str | None = None
    future_scale: float | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if 1.0 + sum(weight for _, weight in self.prompts) == 0:
            raise ValueError(f"guidance: with the own one's 1, the prompts' weights {self.prompts} sum to 0")

    @property
    def copies(self) -> int:
        """Network rows per sample: one when nothing is guided."""
        return 1 if self.plain else 2 + len(self.prompts)

    @property
    def plain(self) -> bool:
        return self.scale == 1.0 and self.future_scale in (None, 1.0) and not self.prompts

    def texts(self, own: str | None) -> list[str | None]:
        """The prompts of one sample in the order `combine` expects; None is the null text."""
        return [own] if self.plain else [own, *(text for text, _ in self.prompts), self.negative]

    def combine(self, out_SB: Tensor, future: bool = False, axis: int = -1, guided: int | None = None) -> Tensor:
        """(B * copies, ...), each sample's copies one after the other -> (B, ...).

        Args:  future: by the scale of futures.   guided: so many leading entries of `axis`; None: all.
        """
        if self.plain:
            return out_SB
        out = out_SB.unflatten(0, (-1, self.copies))
        weights = [1.0, *(weight for _, weight in self.prompts)]
        prompts = sum(w / sum(weights) * out[:, i] for i, w in enumerate(weights))
        base = out[:, -1]
        scale = self.scale if self.future_scale is None or not future else self.future_scale
        combined = base + scale * (prompts - base)
        rest = 0 if guided is None else combined.shape[axis] - guided
        if rest <= 0:
            return combined
        return torch.cat([combined.narrow(axis, 0, guided), prompts.narrow(axis, guided, rest)], axis)
