"""Our own store, as a recording that other formats are written from and as what they are converted to."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from padpolicy.data.convert.recording import ConvertError, DamagedError, Notes, Options
from padpolicy.data.layout import StoreError
from padpolicy.data.store import Episode, Store, StoreSpec

NAME = "padpolicy store"


def recognises(path: Path) -> bool:
    """Is it zarr with our attributes?"""
    from padpolicy.data.layout import open_checked

    return path.is_dir() and "schema_version" in open_checked(path)[1]


class _StoredRows:
    """Rows `start` to `stop` of an array of a store, read when they are asked for."""

    def __init__(self, store: Store, name: str, start: int, stop: int) -> None:
        array = store.array(name)
        self._store, self._name, self._start = store, name, start
        self.shape, self.dtype = (stop - start, *array.shape[1:]), array.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, behind, _ = rows.indices(self.shape[0])
        try:
            return self._store.read(self._name, self._start + first, self._start + behind)
        except StoreError as error:
            raise DamagedError(str(error)) from error


class Ours:
    """An open store as a `Recording`."""

    def __init__(self, path: Path, options: Options) -> None:
        given = [
            name for name in ("fps", "action_kind", "proprio", "filter_key", "image_size") if getattr(options, name)
        ]
        if given:
            raise ConvertError(
                f"{path}: our own stores say themselves what --{given[0].replace('_', '-')} would; leave it out."
            )
        self._store = Store.open(path, cache_bytes=64 << 20)
        self.format, self.notes = NAME, Notes()
        self.spec = self._store.spec
        if options.cameras:
            if unknown := sorted(set(options.cameras) - set(self.spec.cameras)):
                raise ConvertError(
                    f"{path}: there is no camera {unknown[0]!r}; there are {', '.join(self.spec.cameras)}."
                )
            self.spec.cameras = {name: self.spec.cameras[name] for name in options.cameras}
            self.spec.depth_cameras = [name for name in self.spec.depth_cameras if name in options.cameras]
            kept = {f"{kind}_{name}" for name in options.cameras for kind in ("rgb", "depth")} | {"proprio"}
            self.spec.optional = [name for name in self.spec.optional if name in kept]
        self.spec.robot = options.robot or self.spec.robot
        self._task = options.task
        self.ids: Sequence[str] = [str(name) for name in self._store.meta["episode_id"]]

    def episode(self, i: int) -> Episode:
        store = self._store
        start, stop = store.bounds(i)
        names = [name for name in [*self.spec.fields(), "timestamp"] if store.has(name, i)]
        task = store.task_of(i)
        return Episode(
            {name: _StoredRows(store, name, start, stop) for name in names},
            task=self._task if task is None else task["name"],
            success=bool(store.meta["episode_success"][i]),
            seed=int(store.meta["episode_seed"][i]),
            source=str(store.meta["episode_source"][i]),
            id=self.ids[i],
        )

    def close(self) -> None:
        self._store.close()


def read(path: Path, options: Options) -> Ours:
    """Opens a store. Raises StoreError if it is damaged."""
    return Ours(path, options)


class OursWriter:
    """A store that is being filled."""

    def __init__(self, path: Path, spec: StoreSpec) -> None:
        self._store: Any = None
        if path.exists():
            try:
                self._store = Store.open(path, "a")
            except StoreError:  # killed while it was created
                shutil.rmtree(path)
        if self._store is None:
            self._store = Store.create(path, spec)
        self.done = {str(name) for name in self._store.meta["episode_id"]}

    def append(self, episode: Episode) -> None:
        self._store.append(episode)
        self.done.add(episode.id)

    def finish(self) -> None:
        """Nothing is left to write: every append was a commit."""

    def close(self) -> None:
        self._store.close()


def create(path: Path, spec: StoreSpec, total: int) -> OursWriter:
    """A new store, or the one that is already there, to be gone on with."""
    return OursWriter(path, spec)
