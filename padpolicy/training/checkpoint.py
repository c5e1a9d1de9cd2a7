"""Checkpoints of a run: all it takes to go on as if nothing had happened, and a policy that can act.

    out/config.json                                the settings: a run goes on under those it was begun with
    out/checkpoints/step_00001000/policy/          the averaged weights: `padpolicy eval checkpoint=out` loads these
    out/checkpoints/step_00001000/training.safetensors   raw weights, optimiser moments, average (all float32)
    out/checkpoints/step_00001000/training.json    step

Random draws need no saving: they are functions of (seed, step, sample index).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from padpolicy import config
from padpolicy.config import ConfigError, TrainConfig
from padpolicy.policy import PadPolicy
from padpolicy.saving import CheckpointError, Saved, fill_policy, load_weights, read_settings, write_folder
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


def write_config(out: Path, cfg: TrainConfig) -> None:
    """Writes out/config.json, atomically."""
    out.mkdir(parents=True, exist_ok=True)
    draft = out / ".config.json"
    draft.write_text(json.dumps(config.to_dict(cfg), indent=1))
    os.replace(draft, out / "config.json")


def begun(out: Path, cfg: TrainConfig) -> Saved | None:
    """What the newest checkpoint's policy.json says; None where there is no checkpoint.

    Raises:  ConfigError naming the settings that are not those the run was begun with; CheckpointError if what says so
             is missing or damaged.
    """
    paths = newest(out)
    if not paths:
        return None
    try:
        before = json.loads((out / "config.json").read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{out}/config.json, which says how this run was begun, is missing or damaged ({error}). Restore it, or "
            f"train into another out, from these weights with training.init={out}."
        ) from None
    if wrong := config.changed(before, cfg):
        raise ConfigError(
            f"out={out} was begun with other settings: {'; '.join(wrong)}. Go on with those, or train into another "
            f"out, from these weights with training.init={out}."
        )
    return read_settings(paths[0] / "policy")


def resume(out: Path, policy: PadPolicy, optimizer: torch.optim.AdamW, ema: EMA | None) -> int:
    """Fills policy, optimiser and average from the newest checkpoint. Returns its step, 0 if there is none.

    Raises:  CheckpointError if it is damaged, belongs to another network, or was trained on another robot or with other
             encoders.
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
    _check_same(policy, read_settings(path / "policy"), path)
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


def _check_same(policy: PadPolicy, saved: Saved, path: Path) -> None:
    """Raises CheckpointError if what the data and the encoders are is not what it was."""
    now = policy.to_json()
    pairs = {f"encoders.{kind}": (saved.fingerprints[kind], new) for kind, new in now["fingerprints"].items()}
    pairs |= {key: (getattr(saved.config.spec, key), new) for key, new in now["config"]["spec"].items()}
    if wrong := [f"{key} was {then!r}, is {new!r}" for key, (then, new) in pairs.items() if then != new]:
        raise CheckpointError(
            f"{path} was trained on other data or with other encoders: {'; '.join(wrong)}. Go on with those, or train "
            "into another out."
        )
