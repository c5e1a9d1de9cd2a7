"""Checkpoints of a run: all it takes to go on as if nothing had happened, and a policy that can act.

    out/config.json
    out/checkpoints/step_00001000/policy/          the averaged weights: `padpolicy eval checkpoint=out` loads these
    out/checkpoints/step_00001000/training.safetensors   raw weights, optimiser moments, average (all float32)
    out/checkpoints/step_00001000/training.json    step

Random draws need no saving: they are functions of (seed, step, sample index).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from padpolicy.policy import PadPolicy
from padpolicy.saving import CheckpointError, fill_policy, load_weights, write_folder
from padpolicy.training.ema import EMA

_MOMENTS = ("exp_avg", "exp_avg_sq")


def save(out: Path, step: int, policy: PadPolicy, optimizer: torch.optim.AdamW, ema: EMA | None, keep: int) -> Path:
    """Writes checkpoint `step`, atomically, then deletes all but the newest `keep`."""
    names = {parameter: name for name, parameter in policy.named_parameters()}
    tensors = {f"weights/{name}": w for name, w in policy.state_dict().items()}
    for parameter, state in optimizer.state.items():
        tensors.update({f"{moment}/{names[parameter]}": state[moment] for moment in _MOMENTS})
        tensors[f"steps/{names[parameter]}"] = state["step"]
    if ema is not None:
        tensors.update({f"average/{name}": w for name, w in ema.weights.items()})

    def fill(folder: Path) -> None:
        (folder / "policy").mkdir()
        fill_policy(policy, folder / "policy", ema.weights if ema else None)
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
            folder / "training.safetensors",
        )
        (folder / "training.json").write_text(json.dumps({"step": step}))

    path = out / "checkpoints" / f"step_{step:08d}"
    write_folder(path, fill)
    for old in newest(out)[keep:]:
        shutil.rmtree(old)
    for leftover in (out / "checkpoints").glob(".step_*"):  # of a process that was killed while writing
        shutil.rmtree(leftover, ignore_errors=True)
    return path


def newest(out: Path) -> list[Path]:
    """Whole checkpoints, the newest first."""
    return sorted((out / "checkpoints").glob("step_*"), reverse=True)


def resume(out: Path, policy: PadPolicy, optimizer: torch.optim.AdamW, ema: EMA | None) -> int:
    """Fills policy, optimiser and average from the newest checkpoint. Returns its step, 0 if there is none.

    Raises:  CheckpointError if it is damaged or belongs to another network.
    """
    paths = newest(out)
    if not paths:
        return 0
    path = paths[0]
    try:
        tensors = load_file(path / "training.safetensors")
        step = json.loads((path / "training.json").read_text())["step"]
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({error}). Delete this folder to go on from the checkpoint before it."
        ) from None

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    load_weights(policy, part("weights/"), path)
    moments = {moment: part(f"{moment}/") for moment in _MOMENTS}
    steps = part("steps/")
    for name, parameter in policy.named_parameters():
        if name in steps:
            state = {moment: moments[moment][name].to(parameter.device) for moment in _MOMENTS}
            optimizer.state[parameter] = {"step": steps[name], **state}
    if ema is not None:
        average = part("average/")
        if not average:
            raise CheckpointError(
                f"{path} holds no moving average: the run was started with training.ema=0. Go on with that, or train "
                "into another out, from these weights with training.init."
            )
        ema.load(average)
    return step
