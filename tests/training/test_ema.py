"""The moving average: its law, its warm-up, and acting with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from padpolicy.training.ema import EMA, averaged


def filled(value: float) -> nn.Linear:
    module = nn.Linear(2, 2)
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


def test_the_average_of_a_constant_is_the_constant() -> None:
    module = filled(0.3)
    ema = EMA(module, 0.99)
    for step in range(1, 50):
        ema.update(module, step)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(ema.weights[name], value)


def test_the_law_with_its_warm_up() -> None:
    ema, expected = EMA(filled(0.0), 0.5), 0.0
    for step, value in enumerate([1.0, -2.0, 4.0, 8.0, 3.0, 5.0, -1.0, 2.0, 7.0, 6.0], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        ema.update(filled(value), step)
        assert ema.weights["weight"][0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert decay == 0.5  # the warm-up is over: 11 / 20 is more


def test_what_is_not_a_float_is_copied() -> None:
    module = nn.BatchNorm1d(2)
    ema = EMA(module, 0.9)
    module.num_batches_tracked += 7
    ema.update(module, 1)
    assert int(ema.weights["num_batches_tracked"]) == 7


def test_acting_with_the_average_gives_the_weights_back() -> None:
    module = filled(1.0)
    ema = EMA(filled(2.0), 0.9)
    with pytest.raises(RuntimeError, match="inside"), averaged(module, ema):
        assert module.weight[0, 0] == 2.0 and not module.training
        raise RuntimeError("inside")
    assert module.weight[0, 0] == 1.0 and module.training
