"""The moving average of the weights, which is what acts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """average <- decay * average + (1 - decay) * weights, after every optimiser step.

    The decay warms up as (1 + step) / (10 + step), so that short runs are not held back by their random start.
    It is a function of the step alone: a resumed run continues the same average.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """step: how many optimiser steps have been taken, this one included."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = module.state_dict()
        averaged, current = [], []
        for name, average in self.weights.items():
            if average.is_floating_point():
                averaged.append(average)
                current.append(now[name])
            else:
                average.copy_(now[name])
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        for name, average in self.weights.items():
            average.copy_(weights[name])


class averaged:
    """`with averaged(module, ema):` the module acts with its averaged weights, in evaluation mode."""

    def __init__(self, module: nn.Module, ema: EMA | None):
        self.module, self.ema = module, ema

    def __enter__(self) -> None:
        self.module.eval()
        if self.ema:
            self.raw = {name: w.detach().clone() for name, w in self.module.state_dict().items()}
            self.module.load_state_dict(self.ema.weights)

    def __exit__(self, *_: object) -> None:
        if self.ema:
            self.module.load_state_dict(self.raw)
        self.module.train()
