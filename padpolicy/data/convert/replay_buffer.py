"""ReplayBuffer zarr (diffusion_policy): a folder of zarr format 2, or the same files in a .zarr.zip.

    data/<key>         (T, ...)   the rows of all episodes, one episode behind the other
    meta/episode_ends  (N,) i8    the row behind the last one of each episode

It says neither seconds, nor words, nor what an action means: options do. What we write has all that in the root's
attribute `padpolicy`, with a checksum per episode and array, so that it is read back as it was.

Chunks are decoded here, with numcodecs, and not by zarr: a chunk whose file is missing would be zeros there, and a cut
blosc frame would be read beyond its end.
"""

from __future__ import annotations

import json
import math
import operator
import os
import re
import shutil
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr

from padpolicy.data.actions import ActionSpec
from padpolicy.data.convert.recording import ConvertError, DamagedError, Notes, Options, action_notes
from padpolicy.data.layout import StoreError, open_array, remove_leftovers, row_shape, write_attrs
from padpolicy.data.letterbox import letterbox
from padpolicy.data.store import Episode, Rows, StoreSpec

NAME = "ReplayBuffer zarr (diffusion_policy)"
_CODECS = {"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"}  # and those of imagecodecs; never a pickle
_MOST_BYTES = 2**31 - 1  # of a decoded chunk: what blosc can hold
_MOST_JSON = 1 << 28  # bytes
_PROPRIO = re.compile(r"state|agent_pos|robot\d*_.*")  # arrays that are proprioception unless options say others
_SAMPLED_CHUNKS = 8  # of float pictures, from which their range is found
_CHUNK_BYTES, _CHUNK_ROWS = 2_000_000, 16384  # that we write
_BLOCK_BYTES = 64 << 20  # of an array that an append holds in memory at once
_JOURNAL = "episodes.jsonl"  # while a data set is written: a line per episode that is whole


def recognises(path: Path) -> bool:
    """Is it zarr format 2 with episode ends, or a zip of such?"""
    if path.is_dir():
        is_v2 = not (path / "zarr.json").exists()
        return is_v2 and (path / "data").is_dir() and (path / "meta" / "episode_ends").is_dir()
    if path.name.endswith(".zarr.zip"):
        return True
    try:
        return path.suffix == ".zip" and bool(_Files(path).below("meta"))
    except Exception:  # whatever zipfile makes of other files
        return False


class _Files:
    """The files of a zarr store by their keys, in a folder or in a zip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = None if path.is_dir() else zipfile.ZipFile(path)

    def below(self, folder: str) -> list[str]:
        """Names of the folders in a folder, sorted."""
        if self._zip is None:
            return sorted(at.name for at in (self.path / folder).iterdir() if at.is_dir() and at.name[0] != ".")
        keys = (key.removeprefix(f"{folder}/") for key in self._zip.namelist() if key.startswith(f"{folder}/"))
        return sorted({key.partition("/")[0] for key in keys if "/" in key})

    def read(self, key: str, most: int) -> bytes | None:
        """The bytes of a file, None where there is none. In a zip its checksum is verified.

        Raises:  ValueError if there are more than `most`; whatever zipfile and the file system raise.
        """
        try:
            with open(self.path / key, "rb") if self._zip is None else self._zip.open(key) as stream:
                data = stream.read(most + 1)
        except (FileNotFoundError, KeyError):
            return None
        if len(data) > most:
            raise ValueError(f"it has more than the {most} bytes that it may have")
        return data

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()


class _Array:
    """An array of zarr format 2. Its last chunk of rows is kept, so that short episodes do not decode it again."""

    def __init__(self, files: _Files, name: str) -> None:
        self._files, self.name = files, name
        try:
            text = files.read(f"{name}/.zarray", _MOST_JSON)
            if text is None:
                raise ValueError("the file is missing")
            meta = json.loads(text)
            self.shape = tuple(operator.index(n) for n in meta["shape"])
            self.chunks = tuple(operator.index(n) for n in meta["chunks"])
            self.dtype = np.dtype(meta["dtype"] if isinstance(meta["dtype"], str) else "V1")  # a list: has fields
            self._compressor, self._filters = meta["compressor"], meta.get("filters")
            self._order, self._separator = meta["order"], meta.get("dimension_separator", ".")
            sound = (
                len(self.shape) == len(self.chunks)
                and min((*self.shape, *(n - 1 for n in self.chunks)), default=0) >= 0
            )
            if (
                meta["zarr_format"] != 2
                or self._order not in ("C", "F")
                or self._separator not in (".", "/")
                or not sound
            ):
                raise ValueError(f"zarr format 2 cannot have {meta}")
        except Exception as error:  # whatever JSON, numpy and the file system make of a damaged file
            raise ConvertError(
                f"{files.path}/{name}/.zarray cannot be read: {error!r}. Restore it from a copy."
            ) from error
        self._codec: Any = None
        self._kept: tuple[int, np.ndarray] | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {self.dtype}"

    @property
    def where(self) -> str:
        return f"{self._files.path}/{self.name}"

    def is_numeric(self, kinds: str, *n_dims: int) -> bool:
        return self.dtype.kind in kinds and len(self.shape) in n_dims

    def prepare(self) -> None:
        """Finds the decompressor.

        Raises:  ConvertError if this array cannot be read, however sound it is.
        """
        if self._filters:
            raise ConvertError(f"{self.where} has filters {self._filters}; padpolicy reads none. Store it without.")
        block = self.chunks[0] * math.prod(self.shape[1:]) * self.dtype.itemsize
        if max(self._chunk_bytes, block) > _MOST_BYTES:
            raise ConvertError(f"{self.where} has chunks of {self.chunks}, more than 2 GB. Store it in smaller ones.")
        if self._compressor is None:
            return
        codec = self._compressor.get("id") if isinstance(self._compressor, dict) else None
        try:
            if str(codec).startswith("imagecodecs_"):
                from imagecodecs.numcodecs import register_codecs

                register_codecs(verbose=False)
            elif codec not in _CODECS:
                raise ValueError(f"expected none, imagecodecs' or one of {', '.join(sorted(_CODECS))}")
            self._codec = numcodecs.get_codec(self._compressor)
        except ImportError as error:
            raise ConvertError(
                f"{self.where} is compressed with {codec}, which needs imagecodecs: pip install imagecodecs."
            ) from error
        except Exception as error:  # numcodecs and imagecodecs each have their own for options they do not know
            raise ConvertError(f"{self.where} has compressor {self._compressor}: {error}.") from error

    @property
    def _chunk_bytes(self) -> int:
        return math.prod(self.chunks) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`.

        Raises:  DamagedError naming the chunk's file.
        """
        parts, size = [np.empty((0, *self.shape[1:]), self.dtype)], self.chunks[0]
        for number in range(start // size, -(-stop // size)):
            if self._kept is None or self._kept[0] != number:
                self._kept = number, self._chunk(number)
            parts.append(self._kept[1][max(start - number * size, 0) : stop - number * size])
        return np.concatenate(parts)

    def _chunk(self, number: int) -> np.ndarray:
        grid = [-(-n // chunk) for n, chunk in zip(self.shape[1:], self.chunks[1:], strict=True)]
        if self.chunks[1:] == self.shape[1:]:
            return self._decoded(number, *[0] * len(grid))
        out = np.empty((self.chunks[0], *self.shape[1:]), self.dtype)
        for index in np.ndindex(*grid):
            place = out[
                (slice(None), *(slice(i * n, (i + 1) * n) for i, n in zip(index, self.chunks[1:], strict=True)))
            ]
            place[:] = self._decoded(number, *index)[tuple(map(slice, place.shape))]
        return out

    def _decoded(self, *index: int) -> np.ndarray:
        key = f"{self.name}/{self._separator.join(map(str, index))}"
        try:
            data = self._files.read(key, 2 * self._chunk_bytes + 4096)
            if data is None:
                raise FileNotFoundError("the file is missing, and whether it held zeros nobody knows")
            if self._codec is None:
                return np.frombuffer(data, self.dtype).reshape(self.chunks, order=self._order)
            if self._compressor["id"] == "blosc":  # which believes its header
                holds, length = struct.unpack("<4xI4xI", data[:16])
                if (holds, length) != (self._chunk_bytes, len(data)):
                    here = f"here are {len(data)} for {self._chunk_bytes}"
                    raise ValueError(f"its header says {length} bytes that hold {holds}; {here}")
            decoded = numcodecs.compat.ensure_contiguous_ndarray(self._codec.decode(data))
            return decoded.view(self.dtype).reshape(self.chunks, order=self._order)
        except Exception as error:  # decompressors, zipfile and the file system each raise their own
            raise DamagedError(f"{self._files.path}/{key} cannot be read: {error}.") from error


@dataclass
class _Column:
    """Where the rows of one of our arrays come from."""

    shape: tuple[int, ...]  # of a row
    dtype: str
    where: str
    read: Callable[[int, int], np.ndarray]  # rows of the whole store

    def rows(self, start: int, stop: int) -> np.ndarray:
        with np.errstate(over="ignore"):  # infinite then
            values = self.read(start, stop).astype(self.dtype, copy=False)
        if self.dtype[0] == "f" and not (finite := np.isfinite(values)).all():
            row = start + int(np.argwhere(~finite)[0][0])
            raise DamagedError(f"{self.where} is NaN or infinite at row {row}.")
        return values


class _Rows:
    """Rows of an episode, read when asked for. Once all were read in order, they are checked against their checksum."""

    def __init__(self, column: _Column, start: int, stop: int, crc: int | None) -> None:
        self.shape, self.dtype = (stop - start, *column.shape), np.dtype(column.dtype)
        self._column, self._start, self._crc = column, start, crc
        self._summed, self._sum = 0, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, behind, _ = rows.indices(self.shape[0])
        values = self._column.rows(self._start + first, self._start + behind)
        if self._crc is None or first not in (0, self._summed):
            return values
        self._sum = _crc(values, self._sum if first else 0)
        self._summed = behind
        if behind == self.shape[0] and self._sum != self._crc:
            raise DamagedError(
                f"{self._column.where}: rows {self._start}..{self._start + behind - 1} are not those that were "
                "written. They are damaged, unless another program changed them: then remove 'padpolicy' from .zattrs."
            )
        return values


def _crc(values: np.ndarray, crc: int = 0) -> int:
    return google_crc32c.extend(crc, values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())


def _json_crc(said: dict[str, Any]) -> int:
    return google_crc32c.value(json.dumps([said["spec"], said["episodes"]], sort_keys=True).encode())


class ReplayBuffer:
    """An open ReplayBuffer as a `Recording`."""

    def __init__(self, path: Path, options: Options) -> None:
        self.format, self.notes, self._task = NAME, Notes(), options.task
        try:
            self._files = _Files(path)
        except Exception as error:  # a zip that is none
            raise ConvertError(f"{path} cannot be opened as a zip: {error}. Restore it from a copy.") from error
        try:
            self._arrays = {name: _Array(self._files, f"data/{name}") for name in self._files.below("data")}
            self._ends = self._read_ends()
            self._columns: dict[str, _Column] = {}
            self._said = self._read_attributes()
            if self._said is None:
                self.spec = self._guess(options)
                self.ids: Sequence[str] = [f"episode-{i:06d}" for i in range(len(self._ends))]
            else:
                self.spec = self._recall(self._said, options)
                self.ids = [episode["id"] for episode in self._said["episodes"]]
        except Exception:
            self.close()
            raise

    def _read_ends(self) -> np.ndarray:
        array = _Array(self._files, "meta/episode_ends")
        if not array.is_numeric("iu", 1):
            raise ConvertError(f"{array.where} is {array.dtype} {array.shape}; expected whole numbers (N,).")
        array.prepare()
        try:
            ends = array.rows(0, array.shape[0]).astype(np.int64)
        except DamagedError as error:
            raise ConvertError(f"{error} Restore it from a copy: without it nobody knows the episodes.") from error
        if not len(ends):
            raise ConvertError(f"{array.where}: there is not a single episode.")
        if wrong := np.flatnonzero(np.diff(ends, prepend=0) <= 0).tolist():
            before = ends[wrong[0] - 1] if wrong[0] else 0
            raise ConvertError(
                f"{array.where}: episode {wrong[0]} ends at row {ends[wrong[0]]}, the one before at {before}."
            )
        return ends

    def _read_attributes(self) -> dict[str, Any] | None:
        """What we said in the root's attributes when we wrote this store; None if we did not."""
        try:
            attrs = json.loads(self._files.read(".zattrs", _MOST_JSON) or b"{}")
            if "padpolicy" not in attrs:
                return None
            said = attrs["padpolicy"]
            if said["crc32c"] != _json_crc(said):
                raise ValueError("what padpolicy wrote is damaged")
            said["spec"] = StoreSpec.from_dict(said["spec"])
            if np.cumsum([episode["steps"] for episode in said["episodes"]]).tolist() != self._ends.tolist():
                raise ValueError("it has other episodes than meta/episode_ends: another program changed the store")
        except Exception as error:  # whatever JSON makes of a damaged file
            raise ConvertError(
                f"{self._files.path}/.zattrs: {error}. Restore it from a copy, or remove 'padpolicy' from it (or the "
                "file) to read the store like one of another program."
            ) from error
        return said

    def _use(self, array: _Array) -> _Array:
        """The array, if its rows can be read."""
        array.prepare()
        if array.shape[0] != self._ends[-1]:
            raise ConvertError(f"{array.where} has {array.shape[0]} rows; meta/episode_ends says {self._ends[-1]}.")
        return array

    # -- a store that we wrote -----------------------------------------------------------------------------------

    def _recall(self, said: dict[str, Any], options: Options) -> StoreSpec:
        given = [
            name for name in ("fps", "action_kind", "proprio", "filter_key", "image_size") if getattr(options, name)
        ]
        if given:
            raise ConvertError(
                f"{self._files.path}: padpolicy wrote it, and it says itself what --{given[0].replace('_', '-')} would."
            )
        spec: StoreSpec = said["spec"]
        spec.cameras = self._chosen(spec.cameras, options)
        spec.depth_cameras = [name for name in spec.depth_cameras if name in spec.cameras]
        optional, spec.optional = spec.optional, []
        fields = spec.fields()
        spec.optional = [name for name in optional if name in fields]
        spec.robot = options.robot or spec.robot
        for name in [*fields, "timestamp"]:
            shape, dtype = row_shape(name, {"fields": fields, "cameras": spec.cameras})
            array = self._arrays.get(name)
            if array is None or array.shape[1:] != shape or array.dtype != np.dtype(dtype):
                raise ConvertError(
                    f"{self._files.path}/data/{name} is {'missing' if array is None else array}; padpolicy wrote "
                    f"rows of {shape} {np.dtype(dtype)}. Restore it from a copy, or remove 'padpolicy' from .zattrs."
                )
            self._columns[name] = _Column(shape, dtype, array.where, self._use(array).rows)
        return spec

    # -- a store of another program ------------------------------------------------------------------------------

    def _guess(self, options: Options) -> StoreSpec:
        """What can be found out about a store that says nothing, and notes about what cannot."""
        if options.filter_key:
            raise ConvertError(f"{self._files.path}: a ReplayBuffer has no filter keys; leave --filter-key out.")
        used = [self._find_timestamp()]
        dt_s = self._dt_s(options)
        options.instruction(NAME)
        pictures = self._chosen(_cameras(self._arrays.values()), options)
        cameras, depths = {}, []
        for camera, array in pictures.items():
            used.append(array)
            depth = self._arrays.get(f"depth_{camera}")
            size = array.shape[2:] if _is_channels_first(array) else array.shape[1:3]
            shown = [options.image_size] * 2 if options.image_size else list(size)
            cameras[camera] = {"size": shown, "intrinsics": None, "extrinsics": None}
            self._columns[f"rgb_{camera}"] = self._pictures(array, shown, options.image_size)
            if depth is not None and depth.dtype == np.uint16 and depth.shape[1:] == size:
                used.append(depth)
                depths.append(camera)
                read = _fitted(self._use(depth).rows, options.image_size)
                self._columns[f"depth_{camera}"] = _Column(tuple(shown), "u2", depth.where, read)
                self.notes.add(f"{depth.name} is taken as millimetres.")
        proprio = self._proprio(options)
        names = self._numbers("proprio", proprio) if proprio else []
        action = [self._arrays["action"]] if "action" in self._arrays else []
        spec = StoreSpec(
            cameras=cameras,
            depth_cameras=depths,
            proprio={"names": names, "unit": ""} if proprio else None,
            robot=options.robot,
            dt_s=dt_s,
        )
        if action:
            if not action[0].is_numeric("f", 1, 2):
                raise ConvertError(f"{self._files.path}: {action[0]}; expected floats (T, A).")
            kind = action_notes(self.notes, "", options.action_kind)
            spec.action = ActionSpec(kind, self._numbers("action", action), dt_s)
        if not spec.fields():
            there = "; ".join(map(str, self._arrays.values())) or "nothing"
            raise ConvertError(f"{self._files.path}: neither pictures, nor actions, nor a state in data/: {there}.")
        self.notes.add("every episode counts as a success: a ReplayBuffer does not say.")
        left = [str(array) for array in self._arrays.values() if array not in [*used, *proprio, *action]]
        left += [f"meta/{name}" for name in self._files.below("meta") if name != "episode_ends"]
        if left:
            self.notes.add(f"left out: {'; '.join(left)}.")
        return spec

    def _chosen(self, found: dict[str, Any], options: Options) -> dict[str, Any]:
        """The cameras that options ask for, of those that there are."""
        if unknown := sorted(set(options.cameras) - set(found)):
            there = ", ".join(found) or "none"
            raise ConvertError(f"{self._files.path}: there is no camera {unknown[0]!r}; there are {there}.")
        return {name: found[name] for name in options.cameras or found}

    def _find_timestamp(self) -> _Array | None:
        array = self._arrays.get("timestamp")
        if array is None or not array.is_numeric("f", 1):
            return None
        self._columns["timestamp"] = _Column((), "f8", array.where, self._use(array).rows)
        return array

    def _dt_s(self, options: Options) -> float:
        """Seconds from row to row: what options say, else the median of the first times."""
        if options.fps or "timestamp" not in self._columns:
            return options.dt_s(NAME)
        stop = min(int(self._ends[-1]), 100_000)
        steps = np.diff(self._columns["timestamp"].rows(0, stop))
        steps = np.delete(steps, self._ends[self._ends < stop] - 1)
        median = round(float(np.median(steps)), 6) if len(steps) else 0.0  # seconds since 1970 are no finer
        return median if median > 0 else options.dt_s(NAME)

    def _pictures(self, array: _Array, shown: list[int], image_size: int) -> _Column:
        """A camera's rows as uint8 (H, W, 3)."""
        self._use(array)
        scale = 1.0
        if array.dtype.kind == "f":
            highest = _highest(array)
            scale = 1.0 if highest > 1.5 else 255.0
            self.notes.add(
                f"{array.name}: {array.dtype} pictures are taken as 0..{255 / scale:g}; the highest value of a "
                f"sample is {highest:g}."
            )

        def read(start: int, stop: int) -> np.ndarray:
            values = array.rows(start, stop)
            if _is_channels_first(array):
                values = values.transpose(0, 2, 3, 1)
            if array.dtype.kind == "f":
                values = np.rint(values * np.float32(scale))
                if not ((values >= 0) & (values <= 255)).all():
                    raise DamagedError(
                        f"{array.where}: rows {start}..{stop - 1} have values from {values.min() / scale:g} to "
                        f"{values.max() / scale:g}; a sample of the array was in 0..{255 / scale:g}."
                    )
            return np.ascontiguousarray(values, np.uint8)

        return _Column((*shown, 3), "u1", array.where, _fitted(read, image_size))

    def _proprio(self, options: Options) -> list[_Array]:
        states = {
            name: array
            for name, array in self._arrays.items()
            if array.is_numeric("f", 1, 2) and name not in ("action", "timestamp")
        }
        if options.proprio:
            if unknown := [name for name in options.proprio if name not in states]:
                there = ", ".join(states) or "none"
                raise ConvertError(
                    f"{self._files.path}: --proprio {unknown[0]}: the arrays of floats (T, P) are {there}."
                )
            return [states[name] for name in options.proprio]
        found = [array for name, array in states.items() if _PROPRIO.fullmatch(name)]
        others = [array for array in states.values() if len(array.shape) == 2]
        found = found or (others if len(others) == 1 else [])
        if found:
            self.notes.add(f"the proprioception is {', '.join(array.name for array in found)}; --proprio takes others.")
        return found

    def _numbers(self, name: str, arrays: list[_Array]) -> list[str]:
        """Makes a column of the arrays' columns, side by side. Returns their names."""
        names = []
        for array in map(self._use, arrays):
            names += [f"{array.name.removeprefix('data/')}_{i}" for i in range(math.prod(array.shape[1:]))]
        where = ", ".join(array.where for array in arrays)

        def read(start: int, stop: int) -> np.ndarray:
            parts = [array.rows(start, stop) for array in arrays]
            return np.concatenate([part.reshape(stop - start, *part.shape[1:] or (1,)) for part in parts], 1)

        self._columns[name] = _Column((len(names),), "f4", where, read)
        return names

    # -- episodes ------------------------------------------------------------------------------------------------

    def episode(self, i: int) -> Episode:
        start, stop = int(self._ends[i - 1]) if i else 0, int(self._ends[i])
        if self._said is None:
            arrays = {name: _Rows(column, start, stop, None) for name, column in self._columns.items()}
            if "timestamp" in arrays and not (np.diff(arrays["timestamp"][:]) > 0).all():
                raise DamagedError(
                    f"{self._columns['timestamp'].where}: times of rows {start}..{stop - 1} do not increase."
                )
            return Episode(arrays, self._task, source=self._files.path.name, id=self.ids[i])
        said = self._said["episodes"][i]
        arrays = {
            name: _Rows(column, start, stop, said["crc32c"][name])
            for name, column in self._columns.items()
            if name not in said["absent"]
        }
        return Episode(arrays, said["task"] or self._task, said["success"], said["seed"], said["source"], said["id"])

    def close(self) -> None:
        self._files.close()


def _is_channels_first(array: _Array) -> bool:
    return array.shape[-1] != 3


def _cameras(arrays: Iterable[_Array]) -> dict[str, _Array]:
    """Camera -> its pictures. A camera is called like its array, less `rgb_`, `_image` or `_rgb`."""
    pictures = [
        array
        for array in arrays
        if (array.is_numeric("f", 4) or array.dtype == np.uint8 and len(array.shape) == 4)
        and 3 in (array.shape[1], array.shape[3])
    ]
    keys = [array.name.removeprefix("data/") for array in pictures]
    names = [key.removeprefix("rgb_").removesuffix("_image").removesuffix("_rgb") or key for key in keys]
    count = Counter(names)
    return {name if count[name] == 1 else key: array for name, key, array in zip(names, keys, pictures, strict=True)}


def _highest(array: _Array) -> float:
    """The highest value in a few chunks."""
    size, highest = array.chunks[0], 0.0
    for number in np.unique(np.linspace(0, (array.shape[0] - 1) // size, _SAMPLED_CHUNKS).astype(int)).tolist():
        try:
            highest = max(highest, float(array.rows(number * size, min((number + 1) * size, array.shape[0])).max()))
        except DamagedError:
            continue  # told when its episode is read
    return highest


def _fitted(read: Callable[[int, int], np.ndarray], size: int) -> Callable[[int, int], np.ndarray]:
    """Pictures letterboxed to a square of `size`; 0: as they are."""
    return (lambda start, stop: letterbox(read(start, stop), size)) if size else read


def read(path: Path, options: Options) -> ReplayBuffer:
    """Raises ConvertError."""
    return ReplayBuffer(path, options)


class ReplayBufferWriter:
    """A ReplayBuffer that is being filled.

    An append writes rows behind the last committed one, then a line of the journal: that commits it. `finish` turns the
    journal into meta/episode_ends and the attribute `padpolicy`.
    """

    def __init__(self, path: Path, spec: StoreSpec) -> None:
        self._path, self._journal, self._spec = path, path / _JOURNAL, spec
        fields = spec.fields()
        self._shapes = {
            name: row_shape(name, {"fields": fields, "cameras": spec.cameras}) for name in [*fields, "timestamp"]
        }
        self._episodes: list[dict[str, Any]] = []
        attrs = json.loads((path / ".zattrs").read_text(encoding="utf-8")) if (path / ".zattrs").is_file() else {}
        if "padpolicy" in attrs:
            self._episodes = attrs["padpolicy"]["episodes"]
        elif self._journal.is_file():
            whole = self._journal.read_bytes().rpartition(b"\n")[0]
            self._episodes = [json.loads(line) for line in whole.splitlines()]
        else:  # killed while it was created, or not yet there
            shutil.rmtree(path, ignore_errors=True)
            self._create()
        remove_leftovers(path, "data", "meta")
        with open(self._journal, "w", encoding="utf-8") as stream:  # without a line that was not finished
            stream.writelines(json.dumps(episode) + "\n" for episode in self._episodes)
        self.done = {episode["id"] for episode in self._episodes}
        self._n_rows = sum(episode["steps"] for episode in self._episodes)
        group = zarr.open_group(path, mode="r+", zarr_format=2)
        self._arrays = {name: open_array(group, f"data/{name}") for name in self._shapes}

    def _create(self) -> None:
        group = zarr.create_group(self._path, zarr_format=2)
        group.create_group("meta")
        for name, (shape, dtype) in self._shapes.items():
            row_bytes = math.prod(shape) * np.dtype(dtype).itemsize
            rows = int(np.clip(_CHUNK_BYTES // row_bytes, 1, _CHUNK_ROWS))
            _create_array(group, f"data/{name}", (0, *shape), (rows, *shape), dtype)

    def append(self, episode: Episode) -> None:
        """Adds and commits one episode, all of it or nothing.

        Raises:  StoreError if its arrays do not fit the specification or hold NaN.
        """
        n = len(episode)
        arrays = dict(episode.arrays)
        if "timestamp" not in arrays:
            if not self._spec.dt_s:
                raise StoreError(f"append of {episode.id}: no timestamp, and no dt_s to make one from.")
            arrays["timestamp"] = np.arange(n) * self._spec.dt_s
        if unknown := sorted(set(arrays) - set(self._shapes)):
            raise StoreError(f"append of {episode.id}: unknown arrays {unknown}; expected {sorted(self._shapes)}.")
        absent, crc = sorted(set(self._shapes) - set(arrays)), {}
        if missing := sorted(set(absent) - set(self._spec.optional)):
            raise StoreError(f"append of {episode.id}: missing arrays {missing}.")
        for name, (shape, dtype) in self._shapes.items():
            values = arrays.get(name, np.broadcast_to(np.zeros((), dtype), (n, *shape)))
            if tuple(values.shape) != (n, *shape) or not np.can_cast(values.dtype, dtype, "same_kind"):
                raise StoreError(
                    f"append of {episode.id}: {name} is {values.dtype} {tuple(values.shape)}; expected "
                    f"{np.dtype(dtype)} {(n, *shape)}."
                )
            crc[name] = self._write(name, values, f"append of {episode.id}: {name}")
        entry = {
            "id": episode.id,
            "task": episode.task,
            "success": bool(episode.success),
            "seed": int(episode.seed),
            "source": episode.source,
            "steps": n,
            "absent": absent,
            "crc32c": crc,
        }
        with open(self._journal, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._episodes.append(entry)
        self.done.add(episode.id)
        self._n_rows += n

    def _write(self, name: str, values: Rows, what: str) -> int:
        """Writes rows behind the last, in blocks that end where chunks do. Returns their checksum."""
        array, (shape, dtype), start, crc = self._arrays[name], self._shapes[name], self._n_rows, 0
        stop = start + values.shape[0]
        array.resize((stop, *shape))
        chunk_bytes = math.prod(array.chunks) * array.dtype.itemsize
        size = max(_BLOCK_BYTES // chunk_bytes, 1) * array.chunks[0]
        first = start
        while first < stop:
            behind = min((first // size + 1) * size, stop)
            block = np.asarray(values[first - start : behind - start]).astype(dtype, copy=False)
            if block.shape != (behind - first, *shape):
                raise StoreError(f"{what}: steps {first - start}..{behind - start - 1} came as {block.shape}.")
            if dtype[0] == "f" and not np.isfinite(block).all():
                raise StoreError(f"{what} is NaN or infinite after step {first - start}. Drop or repair the episode.")
            array[first:behind] = block
            crc, first = _crc(block, crc), behind
        return crc

    def finish(self) -> None:
        ends = np.cumsum([episode["steps"] for episode in self._episodes], dtype=np.int64)
        for name, (shape, _) in self._shapes.items():
            self._arrays[name].resize((self._n_rows, *shape))
        group = zarr.open_group(self._path, mode="r+", zarr_format=2)
        _create_array(group, "meta/episode_ends", ends.shape, ends.shape, "i8")[:] = ends
        said: dict[str, Any] = {"spec": self._spec.to_dict(), "episodes": self._episodes}
        write_attrs(self._path, {"padpolicy": {**said, "crc32c": _json_crc(said)}})
        self._journal.unlink()

    def close(self) -> None:
        """Nothing is open between appends."""


def _create_array(
    group: zarr.Group, path: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str
) -> zarr.Array:
    """An array as diffusion_policy makes them: blosc with zstd, no filters, C order, keys with dots."""
    compressor = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    group.create_array(
        path, shape=shape, chunks=chunks, dtype=dtype, compressors=compressor, filters=None, overwrite=True
    )
    return open_array(group, path)


def create(path: Path, spec: StoreSpec, total: int) -> ReplayBufferWriter:
    """Goes on with the one at `path`, if there is one."""
    return ReplayBufferWriter(path, spec)
