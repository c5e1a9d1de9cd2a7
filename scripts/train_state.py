"""Checkpoints of the small trainings in this folder: everything needed to go on exactly, in safetensors and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn

Optimizers = list[torch.optim.Optimizer]


def save(folder: Path, step: int, model: nn.Module, ema: EMAModel, optimizers: Optimizers, **about: Any) -> None:
    """Writes the state after `step` steps; `progress.json` names it only once it is complete."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for (name, p), shadow in zip(model.named_parameters(), ema.shadow_params, strict=True):
        tensors[f"ema.{name}"] = shadow
        for optimizer in optimizers:
            for key, value in optimizer.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = value
    path = folder / f"state-{step}.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    partial = folder / "progress.json.partial"
    partial.write_text(json.dumps({"step": step, **about}))
    partial.replace(folder / "progress.json")
    for old in folder.glob("state-*.safetensors"):
        if old != path:
            old.unlink()


def restore(folder: Path, model: nn.Module, ema: EMAModel, optimizers: Optimizers) -> int:
    """Puts the saved state back and returns its step, or 0 if nothing was saved."""
    if not (folder / "progress.json").exists():
        return 0
    step = progress(folder)["step"]
    tensors = load_file(folder / f"state-{step}.safetensors")
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            p.copy_(tensors[f"model.{name}"])
            ema.shadow_params[i].copy_(tensors[f"ema.{name}"])
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
            state = {key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else p.device) for key in keys}
            for optimizer in optimizers:  # none of them owns a frozen weight
                if any(p is q for group in optimizer.param_groups for q in group["params"]):
                    optimizer.state[p] = state
    ema.optimization_step = step
    return step


def progress(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "progress.json").read_text())


def averaged(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The averaged weights of the last checkpoint whose names begin with `prefix`, without it."""
    start = f"ema.{prefix}"
    tensors = load_file(folder / f"state-{progress(folder)['step']}.safetensors")
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
