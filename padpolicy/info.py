"""`padpolicy info`: what a dataset, a policy or a training run holds, as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from padpolicy.config import ConfigError


def info(path: Path) -> str:
    """Describes whatever stands at `path`.

    Raises:  ConfigError if it is nothing of padpolicy's; StoreError or CheckpointError if it is damaged.
    """
    if (path / "zarr.json").is_file() or (path / ".zgroup").is_file():
        return _store(path)
    if (path / "policy.json").is_file() or (path / "policy").is_dir() or (path / "checkpoints").is_dir():
        return _policy(path)
    raise ConfigError(
        f"{path} is neither a dataset (zarr) nor a policy (policy.json) nor a training run (checkpoints/)."
    )


def _store(path: Path) -> str:
    from padpolicy.data.store import Store

    store = Store.open(path)
    success, task_of = store.meta["episode_success"], store.meta["episode_task"]
    seconds = 0.0
    for i in range(store.n_episodes):
        first, behind = store.bounds(i)
        times = store.read("timestamp", first, behind)
        seconds += float(times[-1] - times[0])
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    lines = [
        f"{path}: dataset, {store.n_episodes} episodes, {store.n_rows} steps, {seconds / 60:.1f} minutes, "
        f"{size / 1e6:.1f} MB",
        f"  robot     {store.robot or '(none: action-free)'}",
        f"  renderer  {store.renderer or '(real cameras)'}",
    ]
    for name, entry in store.fields.items():
        array = store.array(name)
        shape = " x ".join(map(str, array.shape[1:]))
        lines.append(f"  {name:14} {shape} {array.dtype}, {_about(entry)}".rstrip(", "))
    lines.append("  tasks")
    for number, task in enumerate(store.tasks):
        mine = task_of == number
        if mine.any():
            held_out = ", held out" if task.get("held_out") else ""
            lines.append(f"    {task['name']}: {mine.sum()} episodes, {success[mine].sum()} successful{held_out}")
    if (task_of < 0).any():
        lines.append(f"    (no instruction): {(task_of < 0).sum()} episodes")
    return "\n".join(lines)


def _about(entry: dict[str, Any]) -> str:
    """The words of a field's entry that say what its numbers mean."""
    units, names = entry.get("units") or entry.get("unit") or [], entry.get("names") or []
    if isinstance(units, list) and len(units) == len(names):
        return ", ".join([entry["kind"], *(f"{name} [{unit}]" for name, unit in zip(names, units, strict=True))])
    return ", ".join([entry["kind"], *([f"[{units}]"] if units not in ("", "1", []) else []), *names])


def _policy(path: Path) -> str:
    from padpolicy.saving import find_policy, read_settings

    folder = find_policy(path)
    config = read_settings(folder).config
    spec, model, diffusion = config.spec, config.model, config.diffusion
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    sees = [*(f"rgb {camera}" for camera in spec.cameras), *(f"depth {camera}" for camera in spec.depth_cameras)]
    lines = [
        f"{folder}: policy, {size / 1e6:.1f} MB",
        f"  robot     {spec.robot} ({spec.action_dim} action and {spec.proprio_dim} proprioception numbers)",
        f"  sees      {', '.join(sees)} at {spec.image_size} px; renderer {spec.renderer or '(real cameras)'}",
        f"  plans     {spec.chunk_steps} actions, {spec.dt_s} s apart",
        f"  imagines  {', '.join(spec.future_cameras) or 'nothing'} at {spec.future_offsets_s} s",
        f"  network   {model.depth} blocks of width {model.width}",
        f"  diffusion {diffusion.objective}, {diffusion.steps} sampling steps, coupling {diffusion.coupling}",
        f"  encoders  {config.encoders.image}, {config.encoders.text}",
    ]
    return "\n".join(lines)
