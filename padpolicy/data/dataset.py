"""Stores and videos become batches: windows + store -> samples, several sources mixed by ratio, one stream of batches.

Which sample of which source a batch holds is a function of (seed, step, index): `stream[step]` can be asked for in any
order, by any process, and is always the same. Resuming is asking for the next step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from padpolicy import draws
from padpolicy.batch import Batch, collate
from padpolicy.sample import Sample
from padpolicy.config import DataConfig, split_weight
from padpolicy.data import windows
from padpolicy.data.actions import ActionSpec, hold_action
from padpolicy.data.files import is_zarr, locate
from padpolicy.data.latents import cached_latents
from padpolicy.data.letterbox import letterbox
from padpolicy.data.normalizer import Normalizer
from padpolicy.data.store import Store, StoreError

SPLITS = ("train", "val")


class Source:
    """One store as a source of samples. `action_free` sources give pictures, depth and words only."""

    def __init__(
        self,
        store: Store,
        cfg: DataConfig,
        action_free: bool = False,
        fingerprint: str = "",
        pixels: bool = False,
        camera_names: dict[str, str] | None = None,
        speed: float = 1.0,
    ) -> None:
        """Args: fingerprint: of the image encoder whose cached latents stand in for rgb; "" never uses any.
        pixels: give observed rgb all the same, for an eye that is trained; of imagined cameras both.
        camera_names: requested name -> name in the store, where these differ.
        speed: how much faster than the robot the recording shows things.
        """
        self.store, self.cfg, self.speed = store, cfg, speed
        spec = store.action_spec
        self.action_free = action_free or spec is None
        self.action_spec: ActionSpec | None = None if self.action_free else spec
        self.robot = "" if self.action_free else store.robot
        if self.action_spec is not None and abs(self.action_spec.dt_s - cfg.dt_s) > 0.01 * cfg.dt_s:
            raise StoreError(
                f"{store.path}: actions are {self.action_spec.dt_s} s apart, data.dt_s is {cfg.dt_s}. Set data.dt_s to "
                "the store's, or convert the recording at that rate."
            )
        self.window_spec = windows.WindowSpec(cfg.obs_steps, cfg.chunk_steps, tuple(cfg.future_offsets_s), cfg.dt_s)
        self.timestamp_s = store.read("timestamp", 0, store.n_rows)
        if self.action_spec is not None and self.action_spec.kind == "relative_to_chunk_start":
            raise StoreError(
                f"{store.path}: its actions are relative_to_chunk_start, which means another number for every window a "
                "step is part of. Store them as absolute or delta (padpolicy/data/actions.py converts chunks)."
            )
        self.rows = _split_rows(store, cfg.val_fraction, failures=self.action_free)
        self._camera_names = camera_names or {}
        self._reads = self._choose_arrays(fingerprint, pixels)

    def stored_name(self, camera: str) -> str:
        """What the store calls the camera that the settings call `camera`."""
        return self._camera_names.get(camera, camera)

    def _choose_arrays(self, fingerprint: str, pixels: bool) -> list[tuple[str, str, str, str]]:
        """What a sample reads: (time axis, field name, array name, the store's field behind it)."""
        cfg, reads = self.cfg, []
        for axis, cameras, depth_cameras in (
            ("obs", cfg.cameras, cfg.depth_cameras),
            ("future", cfg.future_cameras, cfg.future_depth_cameras),
        ):
            for camera in cameras:
                stored = self.stored_name(camera)
                latents = cached_latents(self.store, fingerprint, stored, cfg.image_size) if fingerprint else None
                looked_at = pixels and axis == "obs"
                if latents is not None and (not looked_at or camera in cfg.future_cameras):
                    reads.append((axis, f"{axis}.latent_{camera}", latents, f"rgb_{stored}"))
                if f"rgb_{stored}" in self.store.fields and (looked_at or latents is None):
                    reads.append((axis, f"{axis}.rgb_{camera}", f"rgb_{stored}", f"rgb_{stored}"))
            for camera in depth_cameras:
                stored = self.stored_name(camera)
                if f"depth_{stored}" in self.store.fields:
                    reads.append((axis, f"{axis}.depth_{camera}", f"depth_{stored}", f"depth_{stored}"))
        if not self.action_free and "proprio" in self.store.fields:
            reads.append(("obs", "obs.proprio", "proprio", "proprio"))
        return reads

    @property
    def fields(self) -> set[str]:
        """Names of the fields its samples have."""
        return {name for _, name, _, _ in self._reads} | (set() if self.action_free else {"action"})

    def n_windows(self, split: str = "train") -> int:
        return len(self.rows[split])

    def rows_with(self, name: str) -> np.ndarray:
        """Training rows of the episodes that have a field of the store."""
        rows = self.rows["train"]
        if name not in self.store.optional:
            return rows
        there = self.store.meta[f"has_{name}"].astype(bool)
        return rows[there[np.searchsorted(self.store.episode_ends, rows, side="right")]]

    def without_future(self) -> float:
        """Share of the training windows whose imagined frames all lie behind their episode's end."""
        rows, first_s = self.rows["train"], min(self.cfg.future_offsets_s, default=0.0) / self.speed
        if not len(rows) or (self.cfg.hold_future and not self.action_free):
            return 0.0
        last = self.store.episode_ends[np.searchsorted(self.store.episode_ends, rows, side="right")] - 1
        left_s = self.timestamp_s[last] - self.timestamp_s[rows]
        return float((left_s + 0.5 * self.cfg.dt_s / self.speed < first_s).mean())

    def sample(self, i: int, rng: np.random.Generator, split: str = "train") -> Sample:
        """Window `i` of a split. `rng` draws the wording."""
        now = int(self.rows[split][i])
        episode = int(np.searchsorted(self.store.episode_ends, now, side="right"))
        start, stop = self.store.bounds(episode)
        parts = windows.window(now, start, stop, self.timestamp_s, self.window_spec, self.speed)
        sample = Sample(robot=self.robot, text=self._wording(episode, rng))
        for axis, name, array, behind in self._reads:
            if not self.store.has(behind, episode):
                continue
            values = self.store.rows(array, parts[axis].rows)
            if array.startswith(("rgb_", "depth_")):
                values = letterbox(values, self.cfg.image_size)
            sample.fields[name] = values
        if self.action_spec is not None:
            is_pad = parts["action"].is_pad
            for name in sorted({"action", "executed"} & set(self.store.fields)):
                action_TA = self.store.rows(name, parts["action"].rows)
                if is_pad.any():
                    action_TA[is_pad] = hold_action(self.action_spec, action_TA[np.argmax(is_pad) - 1])
                sample.fields[name] = action_TA
            if self.cfg.hold_future:
                parts["future"].is_pad[:] = False  # these rows are the last one already
        for axis, part in parts.items():
            if axis == "action" and self.action_free:
                continue
            sample.is_pad[axis], sample.time_s[axis] = part.is_pad, part.time_s
        return sample

    def _wording(self, episode: int, rng: np.random.Generator) -> str | None:
        task = self.store.task_of(episode)
        if task is None or not task["paraphrases"]:
            return None
        return task["paraphrases"][rng.integers(len(task["paraphrases"]))]


def _split_rows(store: Store, val_fraction: float, failures: bool) -> dict[str, np.ndarray]:
    """Rows of each split. An episode's side depends on its id alone: it stays there when others are added.

    Where the fraction picks none of several episodes, the one nearest to being picked is held out. Without `failures`,
    episodes that failed are on neither side: what their actions did can be watched, but is nothing to imitate.
    """
    draw = np.array([_hash_01(str(name)) for name in store.meta["episode_id"]])
    is_val = draw < val_fraction
    used = np.full(len(draw), True) if failures else np.asarray(store.meta["episode_success"], bool)
    if val_fraction > 0 and used.sum() > 1 and not is_val[used].any():
        is_val[np.argmin(np.where(used, draw, 2.0))] = True
    if is_val[used].all():
        is_val[:] = False
    if len(used) and not used.any():
        raise StoreError(
            f"{store.path}: not one of its {len(used)} episodes succeeded (meta/episode_success), so there is nothing to "
            "imitate. Give it as data.videos=[…] to learn what happens in it."
        )
    length = np.diff(store.episode_ends, prepend=0)
    rows_is_val, rows_used = np.repeat(is_val, length), np.repeat(used, length)
    return {"train": np.flatnonzero(~rows_is_val & rows_used), "val": np.flatnonzero(rows_is_val & rows_used)}


def _hash_01(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") / 2**64


def open_source(
    path: str | Path,
    cfg: DataConfig,
    action_free: bool = False,
    fingerprint: str = "",
    pixels: bool = False,
) -> Source:
    """A store, or a folder of video files, as a source. The arguments are those of `Source`.

    Raises:  StoreError if it is neither, or damaged.
    """
    path, cache_bytes = locate(path), (cfg.cache_mb << 20) // max(cfg.workers, 1)
    if isinstance(path, Path) and path.is_dir() and not is_zarr(path):
        from padpolicy.data import video  # needs PyAV, and only here

        store = video.open_folder(path, cfg.image_size)
        store.cache_bytes = cache_bytes
        names = {cfg.video_camera: video.CAMERA}
        return Source(store, cfg, True, fingerprint, pixels, names, cfg.video_speed)
    speed = cfg.video_speed if action_free else 1.0
    return Source(Store.open(path, cache_bytes=cache_bytes), cfg, action_free, fingerprint, pixels, speed=speed)


class Mixture:
    """Several sources drawn from by ratio: `ratio` of the samples from action-free ones, the rest from the others.

    Within each kind every window is equally likely, times the weight of its source. With sources of one kind only, the
    ratio does not matter.
    """

    def __init__(self, sources: Sequence[Source], ratio: float = 0.0, weights: Sequence[float] = ()) -> None:
        if not sources:
            raise StoreError("nothing to train on: no source was given.")
        self.sources = list(sources)
        self.source_weights = list(weights) or [1.0] * len(self.sources)
        self._check()
        self._weights = {split: self._split_weights(split, ratio) for split in SPLITS}

    def _split_weights(self, split: str, ratio: float) -> np.ndarray:
        counts = np.array([source.n_windows(split) for source in self.sources], np.float64) * self.source_weights
        free = np.array([source.action_free for source in self.sources])
        n_free, n_robot = counts[free].sum(), counts[~free].sum()
        share = 1.0 if not n_robot else 0.0 if not n_free else ratio
        weights = counts.copy()
        weights[free] *= share / n_free if n_free else 0
        weights[~free] *= (1 - share) / n_robot if n_robot else 0
        return weights

    def _check(self) -> None:
        """Raises StoreError if the sources do not fit the settings, or each other."""
        cfg = self.sources[0].cfg
        seen_by = {id(source): {name.replace("latent_", "rgb_") for name in source.fields} for source in self.sources}
        for setting, axis, kind in (
            ("cameras", "obs", "rgb"),
            ("depth_cameras", "obs", "depth"),
            ("future_cameras", "future", "rgb"),
            ("future_depth_cameras", "future", "depth"),
        ):
            # What a robot will look through must be in its own recordings; what is imagined may come from videos.
            sources = (self.robot_sources if axis == "obs" else []) or self.sources
            for camera in getattr(cfg, setting):
                if not any(f"{axis}.{kind}_{camera}" in seen_by[id(source)] for source in sources):
                    there = sorted({name for s in sources for name in s.store.fields if name.startswith(kind)})
                    raise StoreError(
                        f"data.{setting} asks for camera {camera!r}, which no source has; they have: "
                        f"{', '.join(there) or 'none'}. Choose among these, or record it."
                    )
        wanted = {f"future.rgb_{c}" for c in cfg.future_cameras} | {
            f"future.depth_{c}" for c in cfg.future_depth_cameras
        }
        for source in self.sources:
            if source.action_free and not wanted & seen_by[id(source)]:
                there = sorted(name for name in source.store.fields if name.startswith(("rgb_", "depth_")))
                raise StoreError(
                    f"{source.store.path} has no actions and none of the cameras that are imagined "
                    f"({', '.join(sorted(wanted)) or 'none'}): nothing can be learned from its {', '.join(there)}. "
                    "Choose data.future_cameras among these, or leave it out."
                )
        first = self.sources[0]
        for source in self.sources[1:]:
            one, other = first.store.renderer, source.store.renderer
            if one and other and one != other:
                raise StoreError(
                    f"{first.store.path} was drawn by renderer {one!r}, {source.store.path} by {other!r}: their pixels "
                    "differ. Collect both with the same renderer."
                )
        robots = self.robot_sources
        for source in robots[1:]:
            if robots[0].action_spec != source.action_spec:
                raise StoreError(
                    f"{robots[0].store.path} has the actions {robots[0].action_spec}, {source.store.path} has "
                    f"{source.action_spec}: one policy needs one action space. Convert one of them."
                )
            mine, its = (s.store.fields.get("proprio", {}).get("names") for s in (robots[0], source))
            if mine and its and mine != its:
                raise StoreError(
                    f"{robots[0].store.path} has the proprioception {mine}, {source.store.path} has {its}: one policy "
                    "reads one kind. Convert one of them (--proprio)."
                )

    @property
    def robot_sources(self) -> list[Source]:
        return [source for source in self.sources if not source.action_free]

    @property
    def renderer(self) -> str:
        """Which renderer drew the pictures; "" if none did."""
        return next((source.store.renderer for source in self.sources if source.store.renderer), "")

    @property
    def robot(self) -> str:
        """The (first) robot's name; "" without robot data."""
        return next((source.robot for source in self.robot_sources), "")

    @property
    def action_spec(self) -> ActionSpec | None:
        return next((source.action_spec for source in self.robot_sources), None)

    @property
    def proprio_names(self) -> list[str]:
        """Empty if no robot source has proprio."""
        return next(
            (s.store.fields["proprio"]["names"] for s in self.robot_sources if "proprio" in s.store.fields),
            [],
        )

    def n_windows(self, split: str = "train") -> int:
        return sum(source.n_windows(split) for source in self.sources)

    def sample(self, rng: np.random.Generator, split: str = "train") -> Sample:
        """A random sample: source, window and wording are drawn from `rng`, in this order."""
        weights = self._weights[split]
        if not weights.any():
            raise StoreError(
                f"no source has a {split} window; data.val_fraction is {self.sources[0].cfg.val_fraction}."
            )
        source = self.sources[rng.choice(len(weights), p=weights / weights.sum())]
        return source.sample(int(rng.integers(source.n_windows(split))), rng, split)

    def fit_normalizer(self) -> Normalizer:
        """The statistics of all training rows of the robot sources, per robot.

        Raises:  StoreError without robot data: videos alone have no actions to scale.
        """
        spec = self.action_spec
        if spec is None:
            raise StoreError("no source has actions, so there is nothing to fit a normaliser on.")
        parts: dict[str, dict[str, list[np.ndarray]]] = {}
        for source in self.robot_sources:
            for name in ("action", "proprio"):
                if name in source.store.fields:
                    rows = source.store.rows(name, source.rows_with(name))
                    parts.setdefault(source.robot, {}).setdefault(name, []).append(rows)
        data = {robot: {n: np.concatenate(p) for n, p in fields.items()} for robot, fields in parts.items()}
        return Normalizer.fit(data, spec, self.proprio_names)


def open_mixture(cfg: DataConfig, fingerprint: str = "", pixels: bool = False) -> Mixture:
    """The sources that the settings name: `data.path` and `data.more` as robot data, `data.videos` as action-free."""
    sources, weights = [], []
    named = [("data.path", cfg.path)] if cfg.path else []
    named += [("data.more", path) for path in cfg.more] + [("data.videos", path) for path in cfg.videos]
    for setting, path in named:
        path, weight = split_weight(path)
        if not 0 < weight < float("inf"):
            raise StoreError(f"{path}: the weight behind @ is {weight:g}; expected a number above 0.")
        source = open_source(path, cfg, setting == "data.videos", fingerprint, pixels)
        if source.action_free and setting != "data.videos":
            raise StoreError(f"{setting}={path} has no actions, so no policy comes of it. Give it as data.videos=[…].")
        sources.append(source)
        weights.append(weight)
    return Mixture(sources, cfg.video_ratio, weights)


class BatchStream:
    """`stream[step]` is the batch of that step: this rank's contiguous share of `batch_size` samples over all ranks."""

    def __init__(
        self,
        mixture: Mixture,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        split: str = "train",
    ) -> None:
        if not 0 <= rank < world or batch_size < world:
            raise ValueError(f"rank {rank} of {world} with a global batch of {batch_size}: every rank needs a sample.")
        self.mixture, self.batch_size, self.seed, self.split = mixture, batch_size, seed, split
        self.indices = range(rank * batch_size // world, (rank + 1) * batch_size // world)

    def __getitem__(self, step: int) -> Batch:
        samples = []
        for index in self.indices:
            rng = draws.generator(self.seed, step, index, f"data.{self.split}")
            sample = self.mixture.sample(rng, self.split)
            sample.index = index
            samples.append(sample)
        return collate(samples, seed=self.seed, step=step)


def loader(stream: BatchStream, start: int, stop: int, workers: int = 0, pin_memory: bool = False) -> Iterable[Batch]:
    """The batches of steps `start` to `stop`, in order, made by `workers` processes of one thread each (0: here).

    Workers are started afresh, never forked: a fork would copy locks that other threads hold. A script that
    uses them needs the usual `if __name__ == "__main__":`.
    """
    options: dict = {}
    if workers:
        options = {"multiprocessing_context": "spawn", "persistent_workers": True, "prefetch_factor": 4}
        options["worker_init_fn"] = _one_thread
    return DataLoader(
        stream,  # type: ignore[arg-type]  # anything with __getitem__ is a map-style dataset
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # without batch_size it is given what the stream gives
        pin_memory=pin_memory,
        **options,
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _one_thread(_: int) -> None:
    import torch
    import zarr
    from numcodecs import blosc

    torch.set_num_threads(1)
    blosc.use_threads = False
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
