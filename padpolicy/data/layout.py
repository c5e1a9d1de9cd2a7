"""The layout of a store on disk: what `Store`, validation and the cached latents have in common.

What the arrays are and how a commit works is told at the top of `padpolicy/data/store.py`.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from padpolicy.data.actions import ActionSpec
from padpolicy.data.files import is_writable, is_zarr, locate, open_root, read_file

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
META_CHUNK = 4096  # episodes
_CHUNK_BYTES = 600_000  # of decoded frames: a single random frame stays cheap, and files stay few
_OWN_RECORDINGS = "Store.create and Store.append (docs/data.md)"


class StoreError(ValueError):
    """A store that cannot be used as asked. The message says where, what was expected and what to do."""


class LockedError(StoreError):
    """Another process is writing."""


@dataclass
class Finding:
    """One thing that is wrong with a store. `level` is "error" (unusable), "warning" or "info"."""

    level: str
    where: str
    message: str


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


def meta_dtypes(attrs: dict[str, Any]) -> dict[str, str]:
    """The arrays of meta/ and their dtypes: those of every store, and one per optional field."""
    return META | {f"has_{name}": "bool" for name in attrs.get("optional", [])}


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
    path = locate(path)
    try:
        there = is_zarr(path)
    except Exception as error:  # whatever an object store makes of a wrong key, endpoint or name
        return None, {}, [Finding("error", str(path), f"it cannot be reached: {_first(error)}")]
    if not there:
        nothing = isinstance(path, str) or not path.exists()
        reason = "there is nothing at this path" if nothing else "this is not a zarr store"
        return (
            None,
            {},
            [
                Finding(
                    "error", str(path), f"{reason}; expected a store made by padpolicy collect or {_OWN_RECORDINGS}."
                )
            ],
        )
    try:
        group = open_root(path, "r+" if is_writable(path) else "r")
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
    meta = {name: look(f"meta/{name}") for name in meta_dtypes(attrs)}
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


def read_meta(path: Path | str, array: zarr.Array, n: int) -> np.ndarray:
    """The entries of the first `n` episodes in an array of meta/, verified.

    Raises:  StoreError naming episodes and file.
    """
    parts = [array[:0]]
    for chunk in range(-(-n // array.chunks[0])):
        start = chunk * array.chunks[0]
        stop = min(start + array.chunks[0], n)
        file = f"{array.path}/{array.metadata.encode_chunk_key((chunk,))}"
        try:
            if read_file(path, file) is None:
                raise FileNotFoundError("the chunk's file is missing")
            parts.append(array[start:stop])
        except Exception as error:  # as in `read_chunk`
            raise StoreError(
                f"episodes {start}..{stop - 1} of {array.path} cannot be read: {_reason(error)}. Restore "
                f"{path}/{file} from a copy, or rebuild the store."
            ) from error
    return np.concatenate(parts)


def read_chunk(path: Path | str, array: zarr.Array, chunk: int, n_rows: int, episode_ends: np.ndarray) -> np.ndarray:
    """Chunk number `chunk` of an array as far as it is committed, decoded and verified.

    Raises:  StoreError naming array, episode, step and file.
    """
    start = chunk * array.chunks[0]
    stop = min(start + array.chunks[0], n_rows, array.shape[0])
    file = f"{array.path}/{array.metadata.encode_chunk_key((chunk, *[0] * (array.ndim - 1)))}"
    try:
        if array.chunks[1:] != array.shape[1:]:  # several files a chunk of rows: nothing that we wrote
            return array[start:stop]
        data = read_file(path, file)
        if data is None:
            raise FileNotFoundError("the chunk's file is missing")
        return _decode_ours(array, data)[: stop - start] if _is_ours(array) else array[start:stop]
    except Exception as error:  # the checksum, the decompressor and the file system each raise their own
        episode = int(np.searchsorted(episode_ends, start, side="right"))
        first = int(episode_ends[episode - 1]) if episode else 0
        last = int(np.searchsorted(episode_ends, stop - 1, side="right"))
        raise StoreError(
            f"{array.path}: rows {start}..{stop - 1} (episode {episode}, step {start - first}, to episode {last}) "
            f"cannot be read: {_reason(error)}. Restore {path}/{file} from a copy, or rebuild the store."
        ) from error


def _first(error: Exception) -> str:
    return str(error).split("\n")[0].strip()  # obstore goes on with its innards


def _reason(error: Exception) -> str:
    return str(error).split(". Stored")[0]  # zarr goes on with the two checksums


def _is_ours(array: zarr.Array) -> bool:
    """Has it the codecs that `create_rows` chooses?"""
    return [type(codec) for codec in getattr(array.metadata, "codecs", ())] == [BytesCodec, BloscCodec, Crc32cCodec]


def _decode_ours(array: zarr.Array, data: bytes) -> np.ndarray:
    """A chunk of `create_rows`, three to five times faster than through zarr."""
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
