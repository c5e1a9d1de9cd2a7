"""Random draws of training as a pure function of (seed, step, sample index, stream).

No generator state exists, so none has to be saved: the same sample draws the same numbers on one process or on eight,
and a resumed run repeats an uninterrupted one exactly. Counter-based Philox (Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", SC 2011) makes a stream per key at no set-up cost.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, step: int, index: int, stream: str) -> np.random.Generator:
    """A numpy generator for one sample of one training step. `stream` names the purpose ("mode", "noise", ...)."""
    key = np.array([seed & (2**64 - 1), zlib.crc32(stream.encode())], np.uint64)
    counter = np.array([0, 0, step, index], np.uint64)  # the low words count what is drawn
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(seed: int, step: int, index_B: Tensor, stream: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float32 (B, *shape), on the device of `index_B`."""
    rows = [generator(seed, step, i, stream).standard_normal(tuple(shape), np.float32) for i in index_B.tolist()]
    return torch.from_numpy(np.stack(rows)).to(index_B.device)


def uniform(seed: int, step: int, index_B: Tensor, stream: str, shape: Sequence[int] = ()) -> Tensor:
    """Numbers in [0, 1), float32 (B, *shape), on the device of `index_B`."""
    rows = [generator(seed, step, i, stream).random(tuple(shape), np.float32) for i in index_B.tolist()]
    return torch.from_numpy(np.asarray(rows, np.float32)).to(index_B.device)
