"""`padpolicy info`: what a dataset, a policy or a training run holds, as text; info_page.py shows a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from padpolicy.config import ConfigError
from padpolicy.data.files import is_url, is_zarr, locate

if TYPE_CHECKING:
    from padpolicy.data.store import Store


def info(path: Path | str) -> str:
    """Describes whatever stands at `path`; a URL is that of a dataset.

    Raises:  ConfigError if it is nothing of padpolicy's; StoreError or CheckpointError if it is damaged.
    """
    if is_dataset(path):
        return _store(path)
    path = Path(path)
    if (path / "policy.json").is_file() or (path / "policy").is_dir() or (path / "checkpoints").is_dir():
        return _policy(path)
    raise ConfigError(
        f"{path} is neither a dataset (zarr) nor a policy (policy.json) nor a training run (checkpoints/)."
    )


def is_dataset(path: Path | str) -> bool:
    """Whether there is a zarr store, of whatever kind, or a URL, which can be nothing else."""
    return is_url(path) or is_zarr(locate(path))


def _store(path: Path | str) -> str:
    from padpolicy.data.store import Store

    store = Store.open(path)
    success, task_of = store.meta["episode_success"], store.meta["episode_task"]
    size = f", {megabytes(store):.1f} MB" if isinstance(store.path, Path) else ""
    minutes = episode_seconds(store).sum() / 60
    lines = [
        f"{path}: dataset, {store.n_episodes} episodes, {store.n_rows} steps, {minutes:.1f} minutes{size}",
        f"  robot     {store.robot or ('(no name)' if 'action' in store.fields else '(none: action-free)')}",
        f"  renderer  {store.renderer or '(real cameras)'}",
    ]
    for name, entry in store.fields.items():
        array = store.array(name)
        shape = " x ".join(map(str, array.shape[1:]))
        parts = [f"{shape} {array.dtype}", about(entry)]
        if lacking := absent(store, name):
            parts.append(f"absent in {lacking} of {store.n_episodes} episodes")
        if by := store.attrs.get("estimated", {}).get(name):
            parts.append(f"estimated ({by})")
        lines.append(f"  {name:14} {', '.join(parts)}".rstrip(", "))
    lines.append("  tasks")
    for number, task in enumerate(store.tasks):
        mine = task_of == number
        if mine.any():
            held_out = ", held out" if task.get("held_out") else ""
            lines.append(f"    {task['name']}: {mine.sum()} episodes, {success[mine].sum()} successful{held_out}")
    if (task_of < 0).any():
        lines.append(f"    (no instruction): {(task_of < 0).sum()} episodes")
    return "\n".join(lines)


def episode_seconds(store: Store) -> np.ndarray:
    """(N,) float64: from the first row of each episode to its last."""
    last = store.rows("timestamp", store.episode_ends - 1)
    return last - store.rows("timestamp", np.r_[0, store.episode_ends][:-1])


def absent(store: Store, name: str) -> int:
    """How many episodes lack a field."""
    return sum(not store.has(name, i) for i in range(store.n_episodes)) if name in store.optional else 0


def megabytes(store: Store) -> float:
    """What its folder takes on disk."""
    return sum(file.stat().st_size for file in store.folder().rglob("*") if file.is_file()) / 1e6


def about(entry: dict[str, Any]) -> str:
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
