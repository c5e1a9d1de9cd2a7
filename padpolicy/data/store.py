"""Our zarr layout: demonstrations, or action-free recordings, on disk.

    attrs  schema_version, n_episodes, robot, renderer, fields{name: {kind, unit, frame, names, dt_s}},
           cameras{name: {size: [H, W], intrinsics, extrinsics}}, tasks[{name, paraphrases, held_out}]
    data/rgb_<camera> (T,H,W,3) u8   data/depth_<camera> (T,H,W) u16 mm   data/proprio (T,P) f4
    data/action (T,A) f4             data/timestamp (T,) f8 s          data/executed (T,A) f4
    meta/episode_ends (N,) i8        episode_task (N,) i4, -1: none       episode_success (N,) bool
    meta/episode_seed (N,) i8        episode_source (N,) str              episode_id (N,) str

`fields["action"]` is an `ActionSpec`. An action-free store has no `action` and may have no `proprio`. `action` is what
should be done, the label of a policy; `executed` is what the robot was told, where that may differ (a disturbed
demonstration, a person who took over): the frames that follow come from it.

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

import errno
import json
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from padpolicy.data.actions import ActionSpec

SCHEMA_VERSION = 1
META = {
    "episode_ends": "i8",
    "episode_task": "i4",
    "episode_success": "bool",
    "episode_seed": "i8",
    "episode_source": "str",
    "episode_id": "str",
}
_BLOSC = numcodecs.Blosc()  # decodes whatever blosc wrote
_META_CHUNK = 4096  # episodes
_CHUNK_BYTES = 600_000  # of decoded frames: a single random frame stays cheap, and files stay few
_OWN_RECORDINGS = "Store.create and Store.append (docs/data.md)"


class StoreError(ValueError):
    """A store that cannot be used as asked. The message says where, what was expected and what to do."""


class LockedError(StoreError):
    """Another process is writing."""


@dataclass
class StoreSpec:
    """What every episode of a store has."""

    cameras: dict[str, dict[str, Any]]  # name -> {"size": [H, W], "intrinsics": 3x3 or None, "extrinsics": 4x4 or None}
    depth_cameras: list[str] = field(default_factory=list)  # those of them that also have depth
    proprio: dict[str, Any] | None = None  # {"names": [...], "unit": ..., "frame": ...}; None: no proprio
    action: ActionSpec | None = None  # None: action-free
    executed: bool = False  # also stores the actions that were executed, in the same space
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
        return fields


@dataclass
class Episode:
    """One recording. Arrays are keyed by their names in data/ and have one row per step."""

    arrays: dict[str, np.ndarray]
    task: str = ""  # a task's name; one that the store does not know becomes its own instruction; "": none known
    success: bool = True
    seed: int = -1  # of the scene; -1: unknown
    source: str = ""  # who or what recorded it
    id: str = ""  # unique; "": made from the episode's number

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


@dataclass
class Finding:
    """One thing that is wrong with a store. `level` is "error" (unusable), "warning" or "info"."""

    level: str
    where: str
    message: str


class Store:
    """An open store. Reading is safe from several threads; a read-only store can be pickled and opens again lazily."""

    def __init__(self, path: str | Path, mode: str = "r", cache_bytes: int = 512 << 20) -> None:
        """Args: mode: "r" reads; "a" also appends and takes the lock.   cache_bytes: decoded chunks kept in memory.

        Raises:  StoreError where the store is damaged or not one of ours, or where another process writes to it.
        """
        if mode not in ("r", "a"):
            raise StoreError(f"mode {mode!r}: expected 'r' (read) or 'a' (append).")
        self.path, self.mode, self.cache_bytes = Path(path), mode, cache_bytes
        if mode == "a" and not self.path.is_dir():
            raise StoreError(f"{self.path}: there is no store to append to; create it first.")
        self._lock_file = lock(self.path) if mode == "a" else None
        try:
            self._open()
        except Exception:
            self.close()
            raise
        if mode == "a":
            remove_leftovers(self.path, "data", "meta")  # latents/ has locks of its own

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
        for name in [*fields, "timestamp"]:
            shape, dtype = row_shape(name, attrs)
            create_rows(group, f"data/{name}", shape, dtype)
        for name, dtype in META.items():
            create_rows(group, f"meta/{name}", (), dtype, chunk=_META_CHUNK)
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
            raise StoreError(f"{self.path}: {errors[0].where}: {errors[0].message}{more}")
        self.group: zarr.Group = group
        self.n_episodes: int = self.attrs["n_episodes"]
        self.meta = {name: read_meta(self.path, self.group[f"meta/{name}"], self.n_episodes) for name in META}
        self._arrays: dict[str, zarr.Array] = {}
        self._chunk_rows: dict[str, int] = {}
        self._chunks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._cached_bytes = 0
        self._cache_lock = threading.Lock()

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

    def bounds(self, i: int) -> tuple[int, int]:
        """First row of episode `i` and the row behind its last."""
        if not 0 <= i < self.n_episodes:
            raise StoreError(f"{self.path}: episode {i} does not exist; there are {self.n_episodes}, from 0.")
        return int(self.episode_ends[i - 1]) if i else 0, int(self.episode_ends[i])

    def task_of(self, i: int) -> dict[str, Any] | None:
        """The task of episode `i`, or None if it has none."""
        task = int(self.meta["episode_task"][i])
        return self.tasks[task] if task >= 0 else None

    def episode(self, i: int) -> Episode:
        """Episode `i` with all its arrays."""
        start, stop = self.bounds(i)
        task = self.task_of(i)
        return Episode(
            {name: self.read(name, start, stop) for name in [*self.fields, "timestamp"]},
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
        arrays = self._checked(episode)
        start, number = self.n_rows, self.n_episodes
        stop = start + len(episode)
        tasks = [task["name"] for task in self.tasks]
        new_task = bool(episode.task) and episode.task not in tasks
        attrs = dict(self.attrs)
        if new_task:
            attrs["tasks"] = [*self.tasks, {"name": episode.task, "paraphrases": [episode.task], "held_out": False}]
            tasks.append(episode.task)
        for name, values in arrays.items():
            array = self.array(name)
            array.resize((stop, *array.shape[1:]))
            array[start:stop] = values
        entry = {
            "episode_ends": stop,
            "episode_task": tasks.index(episode.task) if episode.task else -1,
            "episode_success": episode.success,
            "episode_seed": episode.seed,
            "episode_source": episode.source,
            "episode_id": episode.id or f"episode-{number:06d}",
        }
        for name, value in entry.items():
            array = open_array(self.group, f"meta/{name}")
            array.resize((number + 1,))
            array[number : number + 1] = np.array([value], array.dtype)
        attrs["n_episodes"] = number + 1
        write_attrs(self.path, attrs)  # the commit
        self.attrs, self.n_episodes = attrs, number + 1
        for name, value in entry.items():
            self.meta[name] = np.append(self.meta[name], np.array([value], self.meta[name].dtype))
        with self._cache_lock:  # the last chunk of each array has changed
            self._chunks.clear()
            self._cached_bytes = 0
        return number

    def _checked(self, episode: Episode) -> dict[str, np.ndarray]:
        """The episode's arrays in the store's dtypes, after the checks that keep bad rows out."""
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
        if set(arrays) != set(expected):
            missing, extra = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
            raise StoreError(f"{name_it}: missing arrays {missing}, unknown arrays {extra}; expected {expected}.")
        for name in expected:
            shape, dtype = row_shape(name, self.attrs)
            values = np.asarray(arrays[name])
            if values.shape != (len(episode), *shape):
                raise StoreError(f"{name_it}: {name} has shape {values.shape}; expected {(len(episode), *shape)}.")
            if not np.can_cast(values.dtype, dtype, "same_kind") or (dtype[0] == "u" and values.dtype != dtype):
                raise StoreError(f"{name_it}: {name} is {values.dtype}; expected {np.dtype(dtype)}.")
            if dtype[0] == "f" and not np.isfinite(values).all():
                step = int(np.argwhere(~np.isfinite(values))[0][0])
                raise StoreError(f"{name_it}: {name} is NaN or infinite at step {step}. Drop or repair the episode.")
            arrays[name] = values.astype(dtype, copy=False)
        if not (np.diff(arrays["timestamp"]) > 0).all():
            step = int(np.argmin(np.diff(arrays["timestamp"]) > 0)) + 1
            raise StoreError(f"{name_it}: timestamp does not increase at step {step}; expected seconds, increasing.")
        return arrays


# -- the layout, shared with validation and latents --------------------------------------------------------------


def row_shape(name: str, attrs: dict[str, Any]) -> tuple[tuple[int, ...], str]:
    """Shape of one row of data/<name>, and its dtype, as the attributes promise them."""
    if name == "timestamp":
        return (), "f8"
    if name in ("proprio", "action", "executed"):
        return (len(attrs["fields"][name]["names"]),), "f4"
    kind, _, camera = name.partition("_")
    if kind not in ("rgb", "depth") or camera not in attrs["cameras"]:
        cameras = ", ".join(attrs["cameras"]) or "none"
        raise StoreError(f"field {name!r}: expected proprio, action, executed, or rgb_/depth_ of a camera ({cameras}).")
    height, width = attrs["cameras"][camera]["size"]
    return ((height, width, 3), "u1") if kind == "rgb" else ((height, width), "u2")


def create_rows(group: zarr.Group, path: str, shape: tuple[int, ...], dtype: str, chunk: int = 0) -> zarr.Array:
    """An empty array (0, *shape), chunked over its first axis, compressed, with a checksum where the format has one."""
    if not chunk:
        row_bytes = int(np.prod(shape, initial=1)) * np.dtype(dtype).itemsize
        chunk = int(2 ** np.clip(np.floor(np.log2(max(_CHUNK_BYTES / row_bytes, 1))), 0, 12))
    options: dict[str, Any] = {"chunk_key_encoding": {"name": "default", "separator": "."}}  # one flat folder an array
    if group.metadata.zarr_format == 2:
        options = {"compressors": "auto"}
    elif dtype == "str":
        options["compressors"] = [Crc32cCodec()]
    else:
        options["compressors"] = [BloscCodec(cname="lz4", clevel=5), Crc32cCodec()]
    return group.create_array(path, shape=(0, *shape), chunks=(chunk, *shape), dtype=dtype, **options)


def open_array(group: zarr.Group, path: str) -> zarr.Array:
    """An array that also writes chunks of nothing but zeros: for us a chunk that is not there is damage."""
    return group[path].with_config({"write_empty_chunks": True})


def open_checked(path: str | Path) -> tuple[zarr.Group | None, dict[str, Any], list[Finding]]:
    """Opens a store and checks its structure without reading a row: what `Store` and `validate` have in common.

    Returns: the group (None if there is none), its attributes, what is wrong with it.
    """
    path = Path(path)
    if not (path / "zarr.json").is_file() and not (path / ".zgroup").is_file():
        reason = "there is nothing at this path" if not path.exists() else "this is not a zarr store"
        return (
            None,
            {},
            [Finding("error", str(path), f"{reason}; expected a store made by padpolicy collect or {_OWN_RECORDINGS}.")],
        )
    try:
        group = zarr.open_group(path, mode="r+" if os.access(path, os.W_OK) else "r")
        attrs = group.attrs.asdict()
    except Exception as error:  # whatever zarr and JSON make of damaged metadata
        return None, {}, [Finding("error", "attributes", f"the store's metadata cannot be read ({error}). Restore it.")]
    needed = ("schema_version", "n_episodes", "robot", "renderer", "fields", "cameras", "tasks")
    if missing := [name for name in needed if name not in attrs]:
        message = f"{missing} are missing: this is zarr, but not a padpolicy store. Make one with {_OWN_RECORDINGS}."
        return group, attrs, [Finding("error", "attributes", message)]
    if attrs["schema_version"] != SCHEMA_VERSION:
        message = f"schema_version is {attrs['schema_version']}; this padpolicy reads {SCHEMA_VERSION}."
        return group, attrs, [Finding("error", "attributes", message)]
    found: list[Finding] = []

    def look(name: str) -> zarr.Array | None:
        try:
            return group[name]
        except KeyError:
            found.append(Finding("error", name, "the array is missing. Restore it, or record the data again."))
        except Exception as error:
            found.append(Finding("error", name, f"its metadata cannot be read ({error}). Restore the file."))
        return None

    n = attrs["n_episodes"]
    meta = {name: look(f"meta/{name}") for name in META}
    for name, array in meta.items():
        if array is not None and array.shape[0] < n:
            message = f"it has {array.shape[0]} entries for {n} committed episodes: the array is too short."
            found.append(Finding("error", f"meta/{name}", message))
    rows = 0
    ends_array = meta["episode_ends"]
    if n and ends_array is not None and not any(finding.where == "meta/episode_ends" for finding in found):
        try:
            ends = read_meta(path, ends_array, n)
        except StoreError as error:
            return group, attrs, [*found, Finding("error", "meta/episode_ends", str(error))]
        steps = np.diff(ends, prepend=0)
        if (steps <= 0).any():
            i = int(np.argmax(steps <= 0))
            message = (
                f"not increasing at episode {i}: its end is {ends[i]}, and the one before ends at "
                f"{ends[i - 1] if i else 0}. Rebuild the store from its source."
            )
            found.append(Finding("error", "meta/episode_ends", message))
        rows = int(ends.max())
    for camera in attrs["cameras"]:
        if not any(f"{kind}_{camera}" in attrs["fields"] for kind in ("rgb", "depth")):
            message = (
                f"camera {camera!r} is declared but has neither rgb nor depth. Record it, or remove it from cameras."
            )
            found.append(Finding("error", f"cameras/{camera}", message))
    for name in [*attrs["fields"], "timestamp"]:
        try:
            shape, _ = row_shape(name, attrs)
            if name in ("action", "executed"):
                ActionSpec.from_dict(attrs["fields"][name])
        except (ValueError, KeyError, TypeError) as error:
            found.append(Finding("error", f"fields/{name}", str(error)))
            continue
        array = look(f"data/{name}")
        if array is None:
            continue
        if array.shape[1:] != shape:
            message = f"a row has shape {array.shape[1:]}; the attributes promise {shape}."
            found.append(Finding("error", f"data/{name}", message))
        if array.shape[0] < rows:
            message = (
                f"it has {array.shape[0]} rows; {rows} are committed: the array is too short. Restore it from a copy, "
                "or record the data again."
            )
            found.append(Finding("error", f"data/{name}", message))
    return group, attrs, found


def read_meta(path: Path, array: zarr.Array, n: int) -> np.ndarray:
    """The entries of the first `n` episodes in an array of meta/, verified.

    Raises:  StoreError naming episodes and file.
    """
    parts = [array[:0]]
    for chunk in range(-(-n // array.chunks[0])):
        start = chunk * array.chunks[0]
        stop = min(start + array.chunks[0], n)
        file = path / array.path / array.metadata.encode_chunk_key((chunk,))
        try:
            if not file.is_file():
                raise FileNotFoundError("the chunk's file is missing")
            parts.append(array[start:stop])
        except Exception as error:  # as in `read_chunk`
            raise StoreError(
                f"episodes {start}..{stop - 1} of {array.path} cannot be read: {_reason(error)}. Restore {file} from "
                "a copy, or rebuild the store."
            ) from error
    return np.concatenate(parts)


def read_chunk(path: Path, array: zarr.Array, chunk: int, n_rows: int, episode_ends: np.ndarray) -> np.ndarray:
    """Chunk number `chunk` of an array as far as it is committed, decoded and verified.

    Raises:  StoreError naming array, episode, step and file.
    """
    start = chunk * array.chunks[0]
    stop = min(start + array.chunks[0], n_rows, array.shape[0])
    file = path / array.path / array.metadata.encode_chunk_key((chunk, *[0] * (array.ndim - 1)))
    try:
        if array.chunks[1:] == array.shape[1:] and not file.is_file():
            raise FileNotFoundError("the chunk's file is missing")
        decoded = _decode_ours(array, file)
        return array[start:stop] if decoded is None else decoded[: stop - start]
    except Exception as error:  # the checksum, the decompressor and the file system each raise their own
        episode = int(np.searchsorted(episode_ends, start, side="right"))
        first = int(episode_ends[episode - 1]) if episode else 0
        last = int(np.searchsorted(episode_ends, stop - 1, side="right"))
        raise StoreError(
            f"{array.path}: rows {start}..{stop - 1} (episode {episode}, step {start - first}, to episode {last}) "
            f"cannot be read: {_reason(error)}. Restore {file} from a copy, or rebuild the store."
        ) from error


def _reason(error: Exception) -> str:
    return str(error).split(". Stored")[0]  # zarr goes on with the two checksums


def _decode_ours(array: zarr.Array, file: Path) -> np.ndarray | None:
    """A chunk with the codecs that `create_rows` chooses, three to five times faster than through zarr.

    Returns None for any other array: zarr reads those.
    """
    codecs = [type(codec) for codec in getattr(array.metadata, "codecs", ())]
    if codecs != [BytesCodec, BloscCodec, Crc32cCodec] or array.chunks[1:] != array.shape[1:]:
        return None
    data = file.read_bytes()
    if google_crc32c.value(data[:-4]).to_bytes(4, "little") != data[-4:]:
        raise ValueError("stored and computed checksum do not match")
    dtype = array.dtype.newbyteorder("<")
    return np.frombuffer(_BLOSC.decode(data[:-4]), dtype).reshape(array.chunks)


def write_attrs(group_path: Path, attrs: dict[str, Any]) -> None:
    """Replaces a group's attributes by an atomic rename."""
    file, document = group_path / ".zattrs", attrs
    if (group_path / "zarr.json").is_file():
        file = group_path / "zarr.json"
        document = {"zarr_format": 3, "node_type": "group", "attributes": attrs}
    temporary = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def remove_leftovers(folder: Path, *below: str) -> None:
    """Deletes what writes left that were killed before their rename: in a folder, and anywhere in those `below` it.

    Only whoever holds the lock of them may.
    """
    leftovers = [*folder.glob("*.partial"), *(file for name in below for file in (folder / name).rglob("*.partial"))]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)


def lock(path: Path) -> IO[str]:
    """Takes the writer's lock of a store or a part of it; closing the stream gives it back.

    The operating system drops it when this process ends, however it ends: no lock is ever stale.

    Raises:  LockedError if another process has it.
    """
    stream = open(path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  held open for as long as the store is
    try:
        _lock_exclusively(stream)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            stream.close()
            raise StoreError(f"{path}: its file system has no locks ({error.strerror}). Keep it on another.") from error
        stream.seek(0)
        pid = stream.read().strip() or "unknown"
        stream.close()
        raise LockedError(
            f"{path} is being written by process {pid}. One process writes at a time: wait for it, or stop it."
        ) from None
    stream.seek(0)
    stream.truncate()
    stream.write(str(os.getpid()))
    stream.flush()
    return stream


def _lock_exclusively(stream: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
