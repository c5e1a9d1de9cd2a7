"""One short name for a set of weights, so that embeddings made by one encoder are never fed to a policy of another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(weights: Mapping[str, Tensor], *more: str) -> str:
    """Sixteen hex digits over names, shapes and values. `more` is whatever else changes the encoder's output.

    Values are hashed as float16: the same weights have one fingerprint whether they were loaded as fp16 or as fp32.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    for part in more:
        digest.update(f"\n{part}".encode())
    return digest.hexdigest()[:16]
