"""`padpolicy label`: actions for recordings without any, read off their frames by mode `inverse`, marked as estimated.

The recording is put on the policy's clock. From frame k and the frame one imagined offset later the policy says the
actions between them; then it goes on from there. What nobody measured stays absent: there is no proprioception.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from padpolicy.config import ConfigError, DataConfig, LabelConfig
from padpolicy.data.files import is_url

if TYPE_CHECKING:
    from padpolicy.data.dataset import Source
    from padpolicy.data.store import Episode
    from padpolicy.policy import PadPolicy

BATCH = 32  # windows that are read at once


def label(cfg: LabelConfig, progress: Callable[[int, int], None] | None = None) -> Path:
    """Writes cfg.out: a store with the frames of cfg.path at the policy's rate and the actions it reads off them.

    `fields` and episodes say that they are estimated, and by which policy. An `out` that was interrupted goes on.

    Raises:  ConfigError if the policy never learned mode `inverse`, or the recording lacks a camera that it reads.
    """
    from padpolicy.data.actions import ActionSpec
    from padpolicy.data.dataset import open_source
    from padpolicy.data.store import Store, StoreSpec
    from padpolicy.device import pick_device
    from padpolicy.saving import find_policy, load_policy

    policy = load_policy(cfg.checkpoint, pick_device(cfg.device))
    spec = policy.spec
    if not policy.learned("inverse") or not spec.future_cameras:
        raise ConfigError(
            f"checkpoint={cfg.checkpoint} never learned which actions lead from one frame to another: train it with "
            "diffusion.modes={inverse: …} above 0, and with data.future_cameras."
        )
    source = open_source(cfg.path, _as_trained(policy, cfg), action_free=True)
    theirs = source.store.spec
    if max(spec.future_offsets_s) > (spec.chunk_steps + 0.5) * spec.dt_s:
        raise ConfigError(
            f"checkpoint={cfg.checkpoint} imagines {max(spec.future_offsets_s):g} s ahead and acts for "
            f"{spec.chunk_steps * spec.dt_s:g} s: what happens in between would have no actions."
        )
    if is_url(cfg.out):
        raise ConfigError(f"out={cfg.out} is in an object store, where nothing is written. Choose a path on disk.")
    if missing := [c for c in spec.future_cameras if source.stored_name(c) not in theirs.cameras]:
        raise ConfigError(
            f"{cfg.path} has no camera {missing[0]!r}, which the policy reads; it has {[*theirs.cameras]}."
        )
    cameras = {
        c: theirs.cameras[source.stored_name(c)] for c in spec.cameras if source.stored_name(c) in theirs.cameras
    }
    said = f"inverse, {find_policy(cfg.checkpoint).resolve().name} of {cfg.checkpoint}"
    estimated = {"estimated": {"action": said, "from": str(cfg.path), "speed": cfg.speed}}
    depth = [c for c in spec.depth_cameras if c in cameras and source.stored_name(c) in theirs.depth_cameras]
    wanted = StoreSpec(
        cameras=cameras,
        depth_cameras=depth,
        optional=[
            f"{kind}_{c}"
            for kind, some in (("rgb", cameras), ("depth", depth))
            for c in some
            if f"{kind}_{source.stored_name(c)}" in theirs.optional
        ],
        action=ActionSpec.from_dict(spec.action),
        robot=spec.robot,
        renderer=theirs.renderer,
        dt_s=spec.dt_s,
        tasks=theirs.tasks,
        extra=estimated,
    )
    out = Path(cfg.out)
    with Store.open(out, "a") if out.exists() else Store.create(out, wanted) as store:
        if store.spec.extra.get("estimated") != estimated["estimated"]:
            raise ConfigError(
                f"{out} exists and is not {cfg.path} at speed {cfg.speed:g}, labelled by {cfg.checkpoint}. Choose "
                "another out."
            )
        done, total = {str(name) for name in store.meta["episode_id"]}, source.store.n_episodes
        for i, name in enumerate(source.store.meta["episode_id"]):
            seen = all(source.store.has(f"rgb_{source.stored_name(c)}", i) for c in spec.future_cameras)
            if seen and str(name) not in done and (episode := _labelled(policy, source, i)) is not None:
                store.append(episode)
            if progress:
                progress(i + 1, total)
    return out


def _as_trained(policy: PadPolicy, cfg: LabelConfig) -> DataConfig:
    """The windows of the recording, cut as the policy was trained."""
    spec = policy.spec
    return DataConfig(
        cameras=spec.cameras,
        depth_cameras=spec.depth_cameras,
        future_cameras=spec.future_cameras,
        future_depth_cameras=[],
        image_size=spec.image_size,
        dt_s=spec.dt_s,
        obs_steps=spec.obs_steps,
        chunk_steps=spec.chunk_steps,
        future_offsets_s=spec.future_offsets_s,
        video_camera=spec.future_cameras[0],
        video_speed=cfg.speed,
        val_fraction=0.0,
        cache_latents=False,
    )


def _labelled(policy: PadPolicy, source: Source, i: int) -> Episode | None:
    """Episode `i` of the source, at the policy's rate, with estimated actions; None if shorter than one future."""
    import torch

    from padpolicy.batch import collate
    from padpolicy.data.actions import ActionSpec, hold_action
    from padpolicy.data.store import Episode

    store, spec, generator = source.store, policy.spec, torch.Generator().manual_seed(i)
    start, stop = store.bounds(i)
    seconds = (source.timestamp_s[start:stop] - source.timestamp_s[start]) * source.speed
    grid = np.arange(0, seconds[-1] + 0.5 * spec.dt_s, spec.dt_s)
    rows = start + np.searchsorted((seconds[1:] + seconds[:-1]) / 2, grid)  # the nearest frame
    ahead = min(max(round(max(spec.future_offsets_s) / spec.dt_s), 1), spec.chunk_steps)
    if len(grid) <= ahead:
        return None
    starts = list(range(0, len(grid) - ahead, ahead))
    if starts[-1] + ahead < len(grid) - 1:
        starts.append(len(grid) - 1 - ahead)  # the last frame is the future of the last window
    action_TA = np.zeros((len(grid), spec.action_dim), np.float32)
    rng = np.random.default_rng(i)
    for first in range(0, len(starts), BATCH):
        some = starts[first : first + BATCH]
        samples = [source.sample(int(rows[k]), rng) for k in some]
        future = {
            c: torch.from_numpy(np.stack([s.fields[f"future.rgb_{c}"] for s in samples])) for c in spec.future_cameras
        }
        for sample in samples:
            sample.robot = spec.robot
        read = policy.predict(collate(samples), mode="inverse", future=future, generator=generator).action
        assert read is not None  # mode "inverse" is the mode that gives actions
        for k, chunk_TA in zip(some, read.float().cpu().numpy(), strict=True):
            action_TA[k : k + ahead] = chunk_TA[:ahead]
    action = ActionSpec.from_dict(spec.action)
    if action.gripper == "binary":  # an estimate may overshoot what a gripper can be told
        action_TA[:, -1] = action_TA[:, -1].clip(min(action.gripper_range), max(action.gripper_range))
    action_TA[-1] = hold_action(action, action_TA[-2])  # nothing follows the last frame
    arrays = {"timestamp": grid, "action": action_TA}
    for camera in spec.cameras:
        for kind in ("rgb", "depth"):
            name = f"{kind}_{source.stored_name(camera)}"
            wanted = kind == "rgb" or camera in spec.depth_cameras
            if wanted and name in store.fields and store.has(name, i):
                arrays[f"{kind}_{camera}"] = store.rows(name, rows)
    task = store.task_of(i)
    return Episode(
        arrays,
        task="" if task is None else task["name"],
        success=bool(store.meta["episode_success"][i]),
        seed=int(store.meta["episode_seed"][i]),
        source=f"actions estimated; {store.meta['episode_source'][i]}",
        id=str(store.meta["episode_id"][i]),
    )
