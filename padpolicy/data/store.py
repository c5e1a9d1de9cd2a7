"""Our zarr layout: demonstrations, or action-free recordings, on disk.

    attrs  schema_version, n_episodes, robot, renderer, fields{name: {kind, unit, frame, names, dt_s}},
           cameras{name: {size: [H, W], intrinsics, extrinsics}}, tasks[{name, paraphrases, held_out}]
    data/rgb_<camera> (T,H,W,3) u8   data/depth_<camera> (T,H,W) u16 mm   data/proprio (T,P) f4
    data/action (T,A) f4             data/timestamp (T,) f8 s          data/executed (T,A) f4
    meta/episode_ends (N,) i8        episode_task (N,) i4, -1: none       episode_success (N,) bool
    meta/episode_seed (N,) i8        episode_source (N,) str              episode_id (N,) str
    meta/has_<field> (N,) bool       of the fields that the attribute `optional` lists: does this episode have it?

`fields["action"]` is an `ActionSpec`. An action-free store has no `action` and may have no `proprio`. `action` is what
should be done, the label of a policy; `executed` is what the robot was told, where that may differ (a disturbed
demonstration, a person who took over): the frames that follow come from it. An optional field (a camera that was not
always there) has rows of zeros where it is absent, and nobody reads them.

`n_episodes` is the commit point. An append writes rows behind the last committed end, then the episode's entries in
meta/, then `n_episodes` by an atomic rename. Rows behind the last committed end are an ignored tail that the next
append overwrites; arrays *shorter* than that end are errors. A chunk that already holds committed rows is replaced as
a whole (zarr's LocalStore renames a finished file over it), so a process killed anywhere harms no committed row.
One process writes at a time, guarded by a lock that the operating system drops when the process dies.
What a *power cut* leaves is up to the file system: rows are not forced to disk before `n_episodes` is.

Every array of format 3 carries a crc32c per chunk. Format 2, for older readers, has none. Chunks that are missing
are errors too: zarr would read them as zeros.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

from padpolicy.data.actions import ActionSpec
from padpolicy.data.files import locate
from padpolicy.data.layout import (
    META_CHUNK,
    SCHEMA_VERSION,
    StoreError,
    create_rows,
    lock,
    meta_dtypes,
    open_array,
    open_checked,
    read_chunk,
    read_meta,
    remove_leftovers,
    row_shape,
    write_attrs,
)

_BLOCK_BYTES = 64 << 20  # of an array that an append holds in memory at once


@dataclass
class StoreSpec:
    """What every episode of a store has."""

    cameras: dict[str, dict[str, Any]]  # name -> {"size": [H, W], "intrinsics": 3x3 or None, "extrinsics": 4x4 or None}
    depth_cameras: list[str] = field(default_factory=list)  # those of them that also have depth
    proprio: dict[str, Any] | None = None  # {"names": [...], "unit": ..., "frame": ...}; None: no proprio
    action: ActionSpec | None = None  # None: action-free
    executed: bool = False  # also stores the actions that were executed, in the same space
    optional: list[str] = field(default_factory=list)  # fields that some episodes may lack, e.g. "rgb_wrist"
    robot: str = ""  # key of the normaliser; "" where no robot is known
    renderer: str = ""  # which renderer drew the pictures; "" if real cameras did
    dt_s: float = 0.0  # nominal seconds between rows; 0: whatever the timestamps say
    tasks: list[dict[str, Any]] = field(default_factory=list)  # {"name", "paraphrases", "held_out"}; append adds others
    extra: dict[str, Any] = field(default_factory=dict)  # further attributes, kept as they are

    def fields(self) -> dict[str, dict[str, Any]]:
        """The `fields` attribute: one entry per array in data/ except timestamp."""
        if unknown := sorted(set(self.depth_cameras) - set(self.cameras)):
            raise StoreError(f"depth_cameras {unknown} are not among the cameras {sorted(self.cameras)}.")
        fields: dict[str, dict[str, Any]] = {}
        for camera in self.cameras:
            fields[f"rgb_{camera}"] = {"kind": "rgb", "unit": "1", "dt_s": self.dt_s}
        for camera in self.depth_cameras:
            fields[f"depth_{camera}"] = {"kind": "depth", "unit": "mm", "dt_s": self.dt_s}
        if self.proprio is not None:
            fields["proprio"] = {"kind": "state", "unit": "", "frame": "base", "dt_s": self.dt_s, **self.proprio}
        if self.action is not None:
            fields["action"] = self.action.to_dict()
        if self.executed:
            if self.action is None:
                raise StoreError("executed=True: a store without actions has no executed ones either.")
            fields["executed"] = self.action.to_dict()
        if unknown := sorted(set(self.optional) - set(fields) | set(self.optional) & {"action", "executed"}):
            raise StoreError(f"optional {unknown}: expected cameras' fields or proprio, of {sorted(fields)}.")
        return fields

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StoreSpec:
        action = values.get("action")
        return cls(**values | {"action": None if action is None else ActionSpec.from_dict(action)})


class Rows(Protocol):
    """Rows in memory (a numpy array), or somewhere else and read when they are asked for (zarr, HDF5, a video)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, rows: slice) -> Any:
        """The rows from start to stop, as whatever `numpy.asarray` takes."""


@dataclass
class Episode:
    """One recording. Arrays are keyed by their names in data/ and have one row per step."""

    arrays: Mapping[str, Rows]  # of optional fields only those that are there
    task: str = ""  # a task's name; one that the store does not know becomes its own instruction; "": none known
    success: bool = True
    seed: int = -1  # of the scene; -1: unknown
    source: str = ""  # who or what recorded it
    id: str = ""  # unique; "": made from the episode's number

    def __len__(self) -> int:
        return next(iter(self.arrays.values())).shape[0]


class Store:
    """An open store. Reading is safe from several threads; a read-only store can be pickled and opens again lazily.

    path: a folder, or the URL of one in an object store (files.py), which is only read.
    """

    def __init__(self, path: str | Path, mode: str = "r", cache_bytes: int = 512 << 20) -> None:
        """Args: mode: "r" reads; "a" also appends and takes the lock.   cache_bytes: decoded chunks kept in memory.

        Raises:  StoreError where the store is damaged or not one of ours, or where another process writes to it.
        """
        if mode not in ("r", "a"):
            raise StoreError(f"mode {mode!r}: expected 'r' (read) or 'a' (append).")
        self.path, self.mode, self.cache_bytes = locate(path), mode, cache_bytes
        self._lock_file = None
        if mode == "a":
            folder = self.folder()
            if not folder.is_dir():
                raise StoreError(f"{self.path}: there is no store to append to; create it first.")
            self._lock_file = lock(folder)
        try:
            self._open()
        except Exception:
            self.close()
            raise
        if mode == "a":
            remove_leftovers(self.folder(), "data", "meta")  # latents/ has locks of its own

    @classmethod
    def create(cls, path: str | Path, spec: StoreSpec, zarr_format: int = 3) -> Store:
        """Makes an empty store, all of it or nothing, and opens it for appending."""
        path = Path(path)
        if path.exists():
            raise StoreError(f"{path} exists. Open it to append, or choose another path.")
        path.parent.mkdir(parents=True, exist_ok=True)
        building = path.parent / f".{path.name}.creating"
        shutil.rmtree(building, ignore_errors=True)
        group = zarr.create_group(building, zarr_format=zarr_format)
        fields = spec.fields()
        attrs = {"schema_version": SCHEMA_VERSION, "n_episodes": 0, "robot": spec.robot, "renderer": spec.renderer}
        attrs |= {"fields": fields, "cameras": spec.cameras, "tasks": spec.tasks, **spec.extra}
        if spec.optional:
            attrs["optional"] = spec.optional
        for name in [*fields, "timestamp"]:
            shape, dtype = row_shape(name, attrs)
            create_rows(group, f"data/{name}", shape, dtype)
        for name, dtype in meta_dtypes(attrs).items():
            create_rows(group, f"meta/{name}", (), dtype, chunk=META_CHUNK)
        write_attrs(building, attrs)
        os.rename(building, path)
        return cls(path, "a")

    @classmethod
    def open(cls, path: str | Path, mode: str = "r", cache_bytes: int = 512 << 20) -> Store:
        return cls(path, mode, cache_bytes)

    def _open(self) -> None:
        group, self.attrs, problems = open_checked(self.path)
        errors = [problem for problem in problems if problem.level == "error"]
        if group is None or errors:
            more = f" ({len(errors) - 1} more: padpolicy validate {self.path})" if len(errors) > 1 else ""
            where = "" if errors[0].where == str(self.path) else f"{errors[0].where}: "
            raise StoreError(f"{self.path}: {where}{errors[0].message}{more}")
        self.group: zarr.Group = group
        self.n_episodes: int = self.attrs["n_episodes"]
        self.meta = {
            name: read_meta(self.path, self.group[f"meta/{name}"], self.n_episodes) for name in meta_dtypes(self.attrs)
        }
        self._arrays: dict[str, zarr.Array] = {}
        self._chunk_rows: dict[str, int] = {}
        self._chunks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._cached_bytes = 0
        self._cache_lock = threading.Lock()

    def folder(self) -> Path:
        """Where it is on disk.

        Raises:  StoreError for a store in an object store, which is only read.
        """
        if not isinstance(self.path, Path):
            raise StoreError(f"{self.path} is in an object store, where nothing is written. Work on a copy on disk.")
        return self.path

    def close(self) -> None:
        """Gives the lock back. Reading still works afterwards."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None
            self.mode = "r"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        if self._lock_file is not None:
            raise StoreError(f"{self.path} is open for appending and cannot be sent to another process.")
        return {"path": self.path, "cache_bytes": self.cache_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.mode, self.cache_bytes = state["path"], "r", state["cache_bytes"]
        self._lock_file = None
        self._open()

    # -- what is in it -------------------------------------------------------------------------------------------

    @property
    def episode_ends(self) -> np.ndarray:
        """(N,) int64: the row behind the last one of each episode."""
        return self.meta["episode_ends"]

    @property
    def n_rows(self) -> int:
        return int(self.episode_ends[-1]) if self.n_episodes else 0

    @property
    def fields(self) -> dict[str, dict[str, Any]]:
        return self.attrs["fields"]

    @property
    def cameras(self) -> dict[str, dict[str, Any]]:
        return self.attrs["cameras"]

    @property
    def tasks(self) -> list[dict[str, Any]]:
        return self.attrs["tasks"]

    @property
    def optional(self) -> list[str]:
        """Fields that some episodes may lack."""
        return self.attrs.get("optional", [])

    @property
    def robot(self) -> str:
        return self.attrs["robot"]

    @property
    def renderer(self) -> str:
        return self.attrs["renderer"]

    @property
    def action_spec(self) -> ActionSpec | None:
        """None for an action-free store."""
        values = self.fields.get("action")
        return None if values is None else ActionSpec.from_dict(values)

    @property
    def spec(self) -> StoreSpec:
        """What a store would be created with that takes this one's episodes."""
        fields = self.fields
        known = {"schema_version", "n_episodes", "fields", "cameras", "tasks", "robot", "renderer", "optional"}
        return StoreSpec(
            cameras=self.cameras,
            depth_cameras=[name.removeprefix("depth_") for name, entry in fields.items() if entry["kind"] == "depth"],
            proprio=fields.get("proprio"),
            action=self.action_spec,
            executed="executed" in fields,
            optional=self.optional,
            robot=self.robot,
            renderer=self.renderer,
            dt_s=max((entry.get("dt_s") or 0 for entry in fields.values()), default=0.0),
            tasks=self.tasks,
            extra={name: value for name, value in self.attrs.items() if name not in known},
        )

    def bounds(self, i: int) -> tuple[int, int]:
        """First row of episode `i` and the row behind its last."""
        if not 0 <= i < self.n_episodes:
            raise StoreError(f"{self.path}: episode {i} does not exist; there are {self.n_episodes}, from 0.")
        return int(self.episode_ends[i - 1]) if i else 0, int(self.episode_ends[i])

    def task_of(self, i: int) -> dict[str, Any] | None:
        """The task of episode `i`, or None if it has none."""
        task = int(self.meta["episode_task"][i])
        return self.tasks[task] if task >= 0 else None

    def has(self, name: str, i: int) -> bool:
        """Whether episode `i` has a field of the store."""
        return f"has_{name}" not in self.meta or bool(self.meta[f"has_{name}"][i])

    def episode(self, i: int) -> Episode:
        """Episode `i` with the arrays that it has."""
        start, stop = self.bounds(i)
        task = self.task_of(i)
        return Episode(
            {name: self.read(name, start, stop) for name in [*self.fields, "timestamp"] if self.has(name, i)},
            task="" if task is None else task["name"],
            success=bool(self.meta["episode_success"][i]),
            seed=int(self.meta["episode_seed"][i]),
            source=str(self.meta["episode_source"][i]),
            id=str(self.meta["episode_id"][i]),
        )

    # -- reading -------------------------------------------------------------------------------------------------

    def array(self, name: str) -> zarr.Array:
        """The zarr array of a name in data/, or of a full path such as `latents/<fingerprint>/latent_front`."""
        if name not in self._arrays:
            path = name if "/" in name else f"data/{name}"
            if path not in self.group:
                known = sorted([*self.fields, "timestamp"])
                raise StoreError(f"{self.path}: there is no array {name!r}; there are {', '.join(known)}.")
            self._arrays[name] = open_array(self.group, path)
        return self._arrays[name]

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of an array, in its dtype."""
        return self.rows(name, np.arange(start, stop))

    def rows(self, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The given rows of an array (n, ...), in any order, repeats allowed.

        Raises:  StoreError for rows that are not committed, and for a chunk that is missing or fails its checksum.
        """
        if name not in self._chunk_rows:
            self._chunk_rows[name] = self.array(name).chunks[0]  # zarr builds this anew each time it is asked
        size, rows = self._chunk_rows[name], np.asarray(rows, np.int64)
        if len(rows) == 0:
            return np.empty((0, *self.array(name).shape[1:]), self.array(name).dtype)
        first, last = int(rows.min()), int(rows.max())
        if first < 0 or last >= self.n_rows:
            raise StoreError(f"{self.path}: rows {first}..{last} of {name}; expected 0..{self.n_rows - 1}.")
        if first // size == last // size:  # the usual case, in training
            return self._chunk(name, first // size)[rows - first // size * size]
        chunk_of = rows // size
        out = np.empty((len(rows), *self.array(name).shape[1:]), self.array(name).dtype)
        for chunk in np.unique(chunk_of):
            here = chunk_of == chunk
            out[here] = self._chunk(name, int(chunk))[rows[here] - chunk * size]
        return out

    def _chunk(self, name: str, chunk: int) -> np.ndarray:
        """A decoded chunk (committed rows only), from the cache of recently used ones if it is there."""
        key = (name, chunk)
        with self._cache_lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
                return self._chunks[key]
        decoded = read_chunk(self.path, self.array(name), chunk, self.n_rows, self.episode_ends)
        with self._cache_lock:
            if key not in self._chunks:
                self._chunks[key] = decoded
                self._cached_bytes += decoded.nbytes
            while self._cached_bytes > self.cache_bytes and len(self._chunks) > 1:
                self._cached_bytes -= self._chunks.popitem(last=False)[1].nbytes
        return decoded

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, episode: Episode) -> int:
        """Adds an episode and commits it. A task that the store does not know yet is added with it.

        Returns: the episode's number.
        Raises:  StoreError, with the store unchanged, if the arrays do not fit the store or hold NaN.
        """
        if self._lock_file is None:
            raise StoreError(f"{self.path} is open for reading; open it with mode 'a' to append.")
        arrays = self._expected(episode)
        start, number = self.n_rows, self.n_episodes
        stop = start + len(episode)
        tasks = [task["name"] for task in self.tasks]
        new_task = bool(episode.task) and episode.task not in tasks
        attrs = dict(self.attrs)
        if new_task:
            attrs["tasks"] = [*self.tasks, {"name": episode.task, "paraphrases": [episode.task], "held_out": False}]
            tasks.append(episode.task)
        try:
            for name, values in arrays.items():
                array = self.array(name)
                array.resize((stop, *array.shape[1:]))
                for first, block in self._blocks(episode, name, values):
                    array[start + first : start + first + len(block)] = block
        except Exception:
            for name in arrays:
                self.array(name).resize((start, *self.array(name).shape[1:]))
            raise
        entry = {
            "episode_ends": stop,
            "episode_task": tasks.index(episode.task) if episode.task else -1,
            "episode_success": episode.success,
            "episode_seed": episode.seed,
            "episode_source": episode.source,
            "episode_id": episode.id or f"episode-{number:06d}",
            **{f"has_{name}": name in episode.arrays for name in self.optional},
        }
        for name, value in entry.items():
            array = open_array(self.group, f"meta/{name}")
            array.resize((number + 1,))
            array[number : number + 1] = np.array([value], array.dtype)
        attrs["n_episodes"] = number + 1
        write_attrs(self.folder(), attrs)  # the commit
        self.attrs, self.n_episodes = attrs, number + 1
        for name, value in entry.items():
            self.meta[name] = np.append(self.meta[name], np.array([value], self.meta[name].dtype))
        with self._cache_lock:  # the last chunk of each array has changed
            self._chunks.clear()
            self._cached_bytes = 0
        return number

    def _expected(self, episode: Episode) -> dict[str, Rows]:
        """The episode's arrays, names, shapes and dtypes checked; zeros for optional ones that it lacks."""
        name_it = f"{self.path}: append of {episode.id or 'an episode'}"
        arrays = dict(episode.arrays)
        if not arrays or len(episode) == 0:
            raise StoreError(f"{name_it}: it has no steps.")
        if "timestamp" not in arrays:
            dt_s = max((entry.get("dt_s") or 0 for entry in self.fields.values()), default=0)
            if not dt_s:
                raise StoreError(f"{name_it}: no timestamp, and the store has no dt_s to make one from.")
            arrays["timestamp"] = np.arange(len(episode)) * dt_s
        expected = [*self.fields, "timestamp"]
        missing, extra = sorted(set(expected) - set(arrays) - set(self.optional)), sorted(set(arrays) - set(expected))
        if missing or extra:
            raise StoreError(f"{name_it}: missing arrays {missing}, unknown arrays {extra}; expected {expected}.")
        found: dict[str, Rows] = {}
        for name in expected:
            shape, dtype = row_shape(name, self.attrs)
            values = arrays.get(name)
            if values is None:
                values = np.broadcast_to(np.zeros((), dtype), (len(episode), *shape))
            values = values if hasattr(values, "dtype") else np.asarray(values)
            if tuple(values.shape) != (len(episode), *shape):
                raise StoreError(f"{name_it}: {name} has shape {values.shape}; expected {(len(episode), *shape)}.")
            if not np.can_cast(values.dtype, dtype, "same_kind") or (dtype[0] == "u" and values.dtype != dtype):
                raise StoreError(f"{name_it}: {name} is {values.dtype}; expected {np.dtype(dtype)}.")
            found[name] = values
        return found

    def _blocks(self, episode: Episode, name: str, values: Rows) -> Iterator[tuple[int, np.ndarray]]:
        """The rows of an array in the store's dtype, in blocks of whole chunks: (first row, rows), checked."""
        name_it = f"{self.path}: append of {episode.id or 'an episode'}"
        shape, dtype = row_shape(name, self.attrs)
        chunk = self.array(name).chunks[0]
        row_bytes = int(np.prod(shape, initial=1)) * np.dtype(dtype).itemsize
        size = max(_BLOCK_BYTES // (row_bytes * chunk), 1) * chunk
        size -= self.n_rows % chunk if size > chunk else 0  # the first block ends where a chunk does; so do the others
        first, before_s = 0, -np.inf
        while first < len(episode):
            block = np.asarray(values[first : first + size]).astype(dtype, copy=False)
            expected = min(size, len(episode) - first)
            if len(block) != expected:
                raise StoreError(f"{name_it}: {name} ends at step {first + len(block)}; expected {len(episode)} steps.")
            if dtype[0] == "f" and not np.isfinite(block).all():
                step = first + int(np.argwhere(~np.isfinite(block))[0][0])
                raise StoreError(f"{name_it}: {name} is NaN or infinite at step {step}. Drop or repair the episode.")
            if name == "timestamp":
                ahead = np.diff(block, prepend=before_s) > 0
                if not ahead.all():
                    step = first + int(np.argmin(ahead))
                    raise StoreError(
                        f"{name_it}: timestamp does not increase at step {step}; expected seconds, increasing."
                    )
                before_s = float(block[-1])
            yield first, block
            first += len(block)
            size = max(_BLOCK_BYTES // (row_bytes * chunk), 1) * chunk
