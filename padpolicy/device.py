"""Where tensors live, and in which precision they are multiplied."""

from __future__ import annotations

from contextlib import nullcontext

import torch


def pick_device(name: str) -> str:
    """The GPU, if there is one, for "auto"."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def autocast(device: torch.device, precision: str):
    """bf16 matrix products with float32 weights and sums, or plain float32 ("bf16", "fp32")."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
