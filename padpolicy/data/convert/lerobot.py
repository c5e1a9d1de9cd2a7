"""LeRobotDataset v2.0, v2.1 and v3.0, read. What is read and how it maps to our fields: docs/convert/lerobot.md."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from padpolicy.data.actions import ActionSpec
from padpolicy.data.convert.lerobot_layout import EPISODES, INFO, OURS, STATE, block_checksum, feature_keys
from padpolicy.data.convert.lerobot_video import Video
from padpolicy.data.convert.lerobot_writer import LeRobotWriter
from padpolicy.data.convert.recording import (
    ConvertError,
    DamagedError,
    Notes,
    Options,
    action_notes,
    damage_named,
)
from padpolicy.data.letterbox import letterbox
from padpolicy.data.store import Episode, Rows, StoreSpec

NAME = "LeRobotDataset v2.0, v2.1 or v3.0"
_RECORDERS = {"timestamp", "frame_index", "episode_index", "index", "task_index"}  # features that every data set has
_MAX_SIDE = 1 << 14  # pixels of a picture or numbers of a vector; more is a damaged number
_DEPTH = {"depth_min": 0.01, "depth_max": 10.0, "shift": 3.5, "use_log": True}  # of depth videos that do not say


def recognises(path: Path) -> bool:
    """A folder with the metadata of a LeRobotDataset, whole or in part."""
    names = ("info.json", "episodes", "episodes.jsonl", "tasks.parquet", "tasks.jsonl", "episodes_stats.jsonl")
    return any((path / "meta" / name).exists() for name in names)


def read(path: Path, options: Options) -> LeRobot:
    """Opens v2.0, v2.1 or v3.0."""
    return LeRobot(path, options)


def create(path: Path, spec: StoreSpec, total: int) -> LeRobotWriter:
    """Opens a v3.0 data set for writing."""
    return LeRobotWriter(path, spec)


def _metadata(file: Path, load: Callable[[Path], Any]) -> Any:
    """What `load` makes of a file without which nothing can be read."""
    if not file.exists():
        raise ConvertError(f"{file} is missing; a LeRobotDataset has one. Restore it from a copy.")
    try:
        with damage_named(file):
            return load(file)
    except DamagedError as error:
        raise ConvertError(str(error)) from error


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _json_lines(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError("a line is not an object")
    return lines


class Columns:
    """Columns of a parquet file, read forward in small batches; going back begins at a row group."""

    def __init__(self, path: Path, columns: list[str] | None = None, batch_rows: int = 4096) -> None:
        """Raises: whatever pyarrow raises for a file that is damaged."""
        self._file = pq.ParquetFile(path, page_checksum_verification=True, buffer_size=1 << 20)
        self.names = self._file.schema_arrow.names
        if missing := sorted(set(columns or ()) - set(self.names)):
            raise ValueError(f"it has no column {missing[0]!r}; expected one for each feature of {INFO}")
        self._columns, self._batch_rows = columns, batch_rows
        metadata = self._file.metadata
        self._ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], dtype=np.int64)
        self._at = 0  # where the batch begins that was read last
        self._batch: Any = None
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def __len__(self) -> int:
        """How many rows it has."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, first: int, stop: int) -> pa.Table:
        """Rows `first` to `stop`."""
        group = int(np.searchsorted(self._ends, first, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        if self._batch is None or not start <= self._at <= first:
            groups = list(range(group, len(self._ends)))
            self._batches = self._file.iter_batches(self._batch_rows, groups, columns=self._columns)
            self._at, self._batch = start, self._next()
        parts: list[pa.RecordBatch] = []
        while True:
            behind = self._at + self._batch.num_rows
            if first < behind:
                parts.append(self._batch.slice(first - self._at, min(stop, behind) - first))
                first = min(stop, behind)
            if first == stop:
                return pa.Table.from_batches(parts)
            self._at, self._batch = behind, self._next()

    def _next(self) -> pa.RecordBatch:
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(f"it ends before row {len(self)}")
        return batch

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class _Picture:
    """A feature that holds pictures, and how they become ours."""

    key: str
    size: tuple[int, int]  # H, W as recorded
    is_video: bool
    is_depth: bool
    unit: str = ""  # of depth: "m", "mm", or "": millimetres where integers, metres where fractions
    depth_of_code: np.ndarray | None = field(default=None, compare=False)  # (4096,) uint16 mm, of depth videos

    def from_frame(self, video: Video, frame: Any) -> np.ndarray:
        """A decoded video frame as (H, W, 3) uint8 or (H, W) uint16 mm."""
        if (frame.height, frame.width) != self.size:
            raise ValueError(f"a frame is {frame.height} x {frame.width}; {INFO} says {self.size[0]} x {self.size[1]}")
        if self.depth_of_code is None:
            return video.rgb(frame)
        if frame.format.name != "gray12le":
            raise ValueError(f"a depth frame is {frame.format.name}; expected gray12le")
        plane = frame.planes[0]
        codes = np.frombuffer(plane, "<u2").reshape(-1, plane.line_size // 2)[: frame.height, : frame.width]
        return self.depth_of_code[np.minimum(codes, 4095)]

    def from_bytes(self, data: bytes | None) -> np.ndarray:
        """An encoded picture, likewise."""
        if data is None:
            raise ValueError("a picture is not in the file")
        image = self._open(data)
        if image.format == "PNG":
            image.verify()  # its checksums, which decoding does not look at
            image = self._open(data)
        if not self.is_depth:
            return np.asarray(image.convert("RGB"))
        depth = np.asarray(image)
        if depth.ndim != 2:
            raise ValueError(f"a depth picture has shape {depth.shape}; expected (H, W)")
        in_mm = self.unit == "mm" or (not self.unit and depth.dtype.kind != "f")
        if depth.dtype != np.uint16 or not in_mm:
            depth = np.nan_to_num(depth.astype(np.float64) * (1 if in_mm else 1000), nan=0, posinf=0, neginf=0)
            depth = np.clip(np.rint(depth), 0, 65535).astype(np.uint16)
        return depth

    def _open(self, data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data), formats=("PNG", "TIFF", "JPEG", "WEBP"))
        if (image.height, image.width) != self.size:
            raise ValueError(
                f"a picture is {image.height} x {image.width}; {INFO} says {self.size[0]} x {self.size[1]}"
            )
        return image


class _Frames:
    """The pictures of an episode, decoded when they are asked for: (n, H, W, 3) uint8 or (n, H, W) uint16."""

    def __init__(
        self, read: Callable[[int, int], Iterator[np.ndarray]], file: Path, n: int, like: _Picture, square: int
    ):
        self._read, self._file, self._square = read, file, square
        size = (square, square) if square else like.size
        self.shape: tuple[int, ...] = (n, *size) if like.is_depth else (n, *size, 3)
        self.dtype = np.dtype(np.uint16 if like.is_depth else np.uint8)

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, behind, _ = rows.indices(self.shape[0])
        if first >= behind:
            return np.empty((0, *self.shape[1:]), self.dtype)
        with damage_named(self._file):
            frames = self._read(first, behind)
            frame = next(frames)  # before room for all of them is made
            frame = letterbox(frame, self._square) if self._square else frame
            out = np.empty((behind - first, *frame.shape), self.dtype)
            out[0] = frame
            for i, frame in enumerate(frames, 1):
                out[i] = letterbox(frame, self._square) if self._square else frame
        return out


class LeRobot:
    """An open LeRobotDataset as a `Recording`."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path, self._options, self.notes = path, options, Notes()
        self._file = path / INFO
        info = _metadata(self._file, _json)
        version = info.get("codebase_version") if isinstance(info, dict) else None
        if not isinstance(version, str) or not version.startswith(("v2.", "v3.")):
            raise ConvertError(f"{self._file}: codebase_version is {version!r}; padpolicy reads v2.0, v2.1 and v3.0.")
        self.format, self._is_v3 = f"LeRobotDataset {version}", version.startswith("v3.")
        try:
            self._understand(info)
        except ConvertError:
            raise
        except Exception as error:  # a number where a text is expected, a name that is missing, ...
            raise ConvertError(
                f"{self._file}: cannot be understood ({type(error).__name__}: {error}). Restore it from a copy."
            ) from error
        self._columns: dict[str, tuple[Path, Columns]] = {}  # one open file each: the numbers, each kind of picture
        self._videos: dict[str, tuple[Path, Video]] = {}
        self._index: tuple[Path, np.ndarray] | None = None  # the episode of each row of the data file read last

    # -- metadata ------------------------------------------------------------------------------------------------

    def _understand(self, info: dict[str, Any]) -> None:
        self._fps = float(info["fps"])
        if not (math.isfinite(self._fps) and 0 < self._fps <= 1e5):
            raise ConvertError(f"{self._file}: fps is {info['fps']}; expected frames a second.")
        self._features: dict[str, dict[str, Any]] = info["features"]
        self._chunks_size = int(info.get("chunks_size") or 1000)
        self._data_path, self._video_path = info["data_path"], info.get("video_path")
        self._tasks = self._read_tasks()
        self._episodes = self._read_episodes()
        self._length: np.ndarray = self._episodes["length"].to_numpy()
        for name, found in (("total_episodes", len(self._length)), ("total_frames", int(self._length.sum()))):
            if info.get(name) != found:
                raise ConvertError(
                    f"{self._file}: {name} is {info.get(name)}, but {self._where} has {found}. Restore them."
                )
        self._is_ours = OURS in info
        self._success_key = ""  # the feature that says so
        self._pictures: dict[str, _Picture] = {}  # our field -> feature
        self._vectors: dict[str, list[str]] = {}  # our field -> features, one behind the other
        if self._is_ours:
            self._map_ours(info[OURS])
        else:
            self._map_foreign(info)
        used = {picture.key for picture in self._pictures.values()}.union(*self._vectors.values())
        for key, feature in self._features.items():
            if key not in used | _RECORDERS | {"next.success"}:
                self.notes.add(f"feature {key} ({feature.get('dtype')}, {feature.get('shape')}) is left out.")

    def _read_tasks(self) -> dict[int, str]:
        """Number of a task -> its text."""

        def load(file: Path) -> dict[int, str]:
            if self._is_v3:
                table = _read_table(file)
                text = next(name for name in table.column_names if name != "task_index")
                lines = table.rename_columns({text: "task"}).to_pylist()
            else:
                lines = _json_lines(file)
            return {_whole(line["task_index"], "task_index"): str(line["task"]) for line in lines}

        return _metadata(self._path / ("meta/tasks.parquet" if self._is_v3 else "meta/tasks.jsonl"), load)

    def _read_episodes(self) -> pa.Table:
        """One row per episode, in order."""

        def load(where: Path) -> pa.Table:
            if self._is_v3:
                files = sorted(where.glob("*/*.parquet"))
                if not files:
                    raise FileNotFoundError("there is no parquet file in it")
                self._where = files[0] if len(files) == 1 else where
                tables = [_metadata(file, _read_table) for file in files]
                table = pa.concat_tables(tables, promote_options="permissive")
            else:
                lines = _json_lines(where)
                table = pa.table({name: [line[name] for line in lines] for name in ("episode_index", "length")})
            with damage_named(self._where):
                table = table.sort_by("episode_index")
                if table["episode_index"].to_pylist() != list(range(len(table))):
                    raise ValueError(f"episode_index is not 0 to {len(table) - 1}, each once")
                for i, length in enumerate(table["length"].to_pylist()):
                    if not _whole(length, f"length of episode {i}"):
                        raise ValueError(f"episode {i} has no frames")
            return table

        self._where = self._path / (EPISODES if self._is_v3 else "meta/episodes.jsonl")  # for messages
        return _metadata(self._where, load)

    def _map_ours(self, block: dict[str, Any]) -> None:
        """What padpolicy wrote: the spec as it was, and the features that it says."""
        options = self._options
        given = [
            name for name in ("fps", "action_kind", "proprio", "filter_key", "image_size") if getattr(options, name)
        ]
        if given:
            raise ConvertError(
                f"{self._file}: padpolicy wrote it, and it says itself what --{given[0].replace('_', '-')} would; "
                "leave it out."
            )
        if block_checksum(block["spec"]) != block["crc32"]:
            raise ConvertError(f"{self._file}: its block {OURS!r} fails its checksum. Restore the file from a copy.")
        self.spec = StoreSpec.from_dict(block["spec"])
        if abs(self._fps * self.spec.dt_s - 1) > 1e-3:
            raise ConvertError(f"{self._file}: fps is {self._fps}; its block {OURS!r} says dt_s {self.spec.dt_s}.")
        wanted = ["id", "task", "source", "seed", "success", "absent", "timestamp"]
        if missing := [name for name in wanted if f"{OURS}/{name}" not in self._episodes.column_names]:
            raise ConvertError(f"{self._where}: column {OURS}/{missing[0]} is missing. Restore it from a copy.")
        fields = self.spec.fields()
        for name, key in feature_keys(self.spec).items():
            feature = self._features[key]
            if name.startswith(("rgb_", "depth_")):
                picture = self._picture(key)
                if list(picture.size) != self.spec.cameras[name.partition("_")[2]]["size"]:
                    raise ConvertError(f"{self._file}: {key} has size {picture.size}; its block {OURS!r} differs.")
                self._pictures[name] = picture
            elif feature["names"] != list(fields[name]["names"]):
                raise ConvertError(f"{self._file}: names of {key} are {feature['names']}; its block {OURS!r} differs.")
            else:
                self._vectors[name] = [key]
        if options.cameras:
            self._check_cameras(list(self.spec.cameras))
            self.spec.cameras = {name: self.spec.cameras[name] for name in options.cameras}
            self.spec.depth_cameras = [name for name in self.spec.depth_cameras if name in options.cameras]
            optional, self.spec.optional = self.spec.optional, []
            fields = self.spec.fields()
            self.spec.optional = [name for name in optional if name in fields]
            self._pictures = {name: picture for name, picture in self._pictures.items() if name in fields}
        self.spec.robot = options.robot or self.spec.robot
        self.ids: Sequence[str] = self._episodes[f"{OURS}/id"].to_pylist()

    def _map_foreign(self, info: dict[str, Any]) -> None:
        """What others wrote: features become fields by their names."""
        options, features = self._options, self._features
        for name in ("fps", "filter_key"):
            if getattr(options, name):
                raise ConvertError(
                    f"{self._file}: LeRobotDataset has no use for --{name.replace('_', '-')}; leave it out."
                )
        cameras, depth_cameras, no_rgb = self._map_pictures()
        state = next((key for key in (STATE, "state") if key in features), None)
        proprio = list(options.proprio) or ([state] if state else [])
        for key in proprio:
            if key not in features or not _is_vector(features[key]):
                vectors = ", ".join(k for k, f in features.items() if _is_vector(f) and k not in _RECORDERS)
                raise ConvertError(f"{self._file}: --proprio {key}: there is no such vector; there are {vectors}.")
        names = [
            name if len(proprio) == 1 else f"{key.removeprefix('observation.')}.{name}"
            for key in proprio
            for name in _names(features[key], key)
        ]
        if proprio:
            self._vectors["proprio"] = proprio
        dt_s, action = 1 / self._fps, next((key for key in ("action", "actions") if key in features), None)
        spec = None
        if action is not None:
            if not _is_vector(features[action]):
                raise ConvertError(f"{self._file}: {action} has shape {features[action]['shape']}; expected (dims,).")
            self._vectors["action"] = [action]
            kind = action_notes(self.notes, "", options.action_kind)
            spec = ActionSpec(kind, _names(features[action], action), dt_s)
        flag = features.get("next.success", {})
        if flag.get("dtype") == "bool" and _is_vector(flag):
            self._success_key = "next.success"
        else:
            self.notes.add("it does not say which episodes succeeded: all of them are taken as successful.")
        self.spec = StoreSpec(
            cameras={
                name: {"size": list(size), "intrinsics": None, "extrinsics": None} for name, size in cameras.items()
            },
            depth_cameras=depth_cameras,
            proprio={"names": names, "unit": ""} if proprio else None,
            action=spec,
            optional=[f"rgb_{name}" for name in no_rgb],
            robot=options.robot or info.get("robot_type") or "",
            dt_s=dt_s,
            tasks=[
                {"name": text, "paraphrases": [text], "held_out": False}
                for text in dict.fromkeys(self._tasks[i] for i in sorted(self._tasks))
                if text
            ],
        )
        self.ids = [f"episode_{i:06d}" for i in range(len(self._length))]

    def _map_pictures(self) -> tuple[dict[str, tuple[int, int]], list[str], list[str]]:
        """Fills `_pictures`. Returns sizes of the cameras, those with depth, those without colours."""
        found: dict[str, _Picture] = {}
        for key, feature in self._features.items():
            if feature["dtype"] in ("image", "video") and not key.startswith("next."):
                picture = self._picture(key)
                if picture.is_depth and picture.is_video and picture.depth_of_code is None:
                    continue  # noted as left out, as every other feature
                name = key.removeprefix("observation.").removeprefix("images.")
                name = "".join(c if c.isalnum() or c in "_-" else "_" for c in name)
                if name in found:
                    raise ConvertError(f"{self._file}: {found[name].key} and {key} would both be camera {name!r}.")
                found[name] = picture
        rgb = {name: picture for name, picture in found.items() if not picture.is_depth}
        camera_of: dict[str, str] = {}  # of each depth
        for name, picture in found.items():
            if picture.is_depth:
                base = name.removesuffix("_depth")
                fits = base in rgb and rgb[base].size == picture.size and base not in camera_of.values()
                camera_of[name] = base if fits else name
        self._check_cameras([*rgb, *camera_of.values()])
        wanted, square = self._options.cameras, self._options.image_size
        sizes: dict[str, tuple[int, int]] = {}
        for name, picture in found.items():
            camera = camera_of.get(name, name)
            if not wanted or camera in wanted:
                self._pictures[f"{'depth' if picture.is_depth else 'rgb'}_{camera}"] = picture
                sizes[camera] = (square, square) if square else picture.size
        depth = [camera for camera in sizes if f"depth_{camera}" in self._pictures]
        return sizes, depth, [camera for camera in sizes if f"rgb_{camera}" not in self._pictures]

    def _check_cameras(self, known: list[str]) -> None:
        if unknown := sorted(set(self._options.cameras) - set(known)):
            raise ConvertError(
                f"{self._path}: there is no camera {unknown[0]!r}; there are {', '.join(known) or 'none'}."
            )

    def _picture(self, key: str) -> _Picture:
        feature = self._features[key]
        shape, names = [int(n) for n in feature["shape"]], feature.get("names")
        if len(shape) != 3:
            raise ConvertError(
                f"{self._file}: {key} has shape {shape}; expected [height, width, channels] or [c, h, w]."
            )
        named = [k for k, name in enumerate(names) if str(name)[:1].lower() == "c"] if isinstance(names, list) else []
        channels = next((k for k in (*named, 2, 0) if k in (0, 2) and shape[k] in (1, 3, 4)), 2)
        height, width = shape[1:] if channels == 0 else shape[:2]
        if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
            raise ConvertError(
                f"{self._file}: {key} has shape {shape}; expected pictures of 1 to {_MAX_SIDE} pixels a side."
            )
        info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
        is_depth = bool(info.get("is_depth_map") or info.get("video.is_depth_map"))
        is_video = feature["dtype"] == "video"
        codes = None
        if is_depth and is_video and info.get("video.pix_fmt", "gray12le") == "gray12le":
            values = {name: info.get(f"video.{name}", value) for name, value in _DEPTH.items()}
            codes = depth_codes(**values)
            if values["depth_min"] > 0:
                self.notes.add(
                    f"{key}: depths up to {1000 * values['depth_min']:g} mm and pixels without any are the same to "
                    "this format; both become 0, which is none."
                )
        elif is_depth and not info.get("depth_unit"):
            self.notes.add(f"{key}: its unit is not said; integers are taken as millimetres, fractions as metres.")
        return _Picture(key, (height, width), is_video, is_depth, info.get("depth_unit") or "", codes)

    # -- episodes ------------------------------------------------------------------------------------------------

    def episode(self, i: int) -> Episode:
        """Episode `i`; its pictures are decoded when their rows are read."""
        n = int(self._length[i])
        file = self._data_file(i)
        with damage_named(file):
            first = self._first_row(file, i, n)
            arrays, success, task = self._numbers(file, first, i, n)
        absent = self._ours("absent", i) or []
        for name in absent:
            arrays.pop(name, None)
        for name, picture in self._pictures.items():
            if name not in absent:
                rows = (
                    self._video_rows(picture, i, n) if picture.is_video else self._image_rows(picture, file, first, n)
                )
                arrays[name] = rows
        if not self._is_ours:
            arrays["timestamp"] = np.arange(n) / self._fps
            return Episode(arrays, task or self._options.task, success, source=str(self._path.name), id=self.ids[i])
        times = self._ours("timestamp", i)
        arrays["timestamp"] = np.arange(n) * self.spec.dt_s if times is None else np.array(times, np.float64)
        said = {name: self._ours(name, i) for name in ("task", "success", "seed", "source")}
        return Episode(
            arrays, said["task"] or self._options.task, said["success"], said["seed"], said["source"], self.ids[i]
        )

    def close(self) -> None:
        for _, columns in self._columns.values():
            columns.close()
        for _, video in self._videos.values():
            video.close()
        self._columns, self._videos = {}, {}

    def _ours(self, name: str, i: int) -> Any:
        """What we wrote about episode `i`."""
        return self._episodes[f"{OURS}/{name}"][i].as_py() if self._is_ours else None

    def _place(self, template: Any, i: int, prefix: str, **more: str) -> Path:
        """The file that a template of info.json names for episode `i`."""
        with damage_named(self._file):
            if not self._is_v3:
                numbers = {"episode_chunk": i // self._chunks_size, "episode_index": i}
            else:
                with damage_named(self._where):
                    numbers = {f"{part}_index": self._cell(f"{prefix}/{part}_index", i) for part in ("chunk", "file")}
            file = self._path / template.format(**numbers, **more)
        if not file.is_file():
            raise DamagedError(f"{file} is missing. Restore it from a copy.")
        return file

    def _cell(self, column: str, i: int) -> int:
        return _whole(self._episodes[column][i].as_py(), column)

    def _data_file(self, i: int) -> Path:
        return self._place(self._data_path, i, "data")

    def _opened(self, file: Path, key: str, columns: list[str], batch_rows: int) -> Columns:
        """The open columns of a file; `key` says which reader of it they are for."""
        if key not in self._columns or self._columns[key][0] != file:
            if old := self._columns.pop(key, None):
                old[1].close()
            self._columns[key] = file, Columns(file, columns, batch_rows)
        return self._columns[key][1]

    def _first_row(self, file: Path, i: int, n: int) -> int:
        """Where episode `i` begins in its file."""
        if self._index is None or self._index[0] != file:
            columns = Columns(file, ["episode_index"])
            table = (
                columns.read(0, len(columns)) if len(columns) else pa.table({"episode_index": pa.array([], pa.int64())})
            )
            columns.close()
            self._index = file, table["episode_index"].to_numpy()
        rows = np.flatnonzero(self._index[1] == i)
        if len(rows) != n or rows[-1] - rows[0] != n - 1:
            raise ValueError(f"episode {i} has {len(rows)} rows in it; expected {n}, one behind the other")
        return int(rows[0])

    def _numbers(self, file: Path, first: int, i: int, n: int) -> tuple[dict[str, Rows], bool, str]:
        """Vectors of episode `i`, whether it succeeded, and its task."""
        keys = [key for keys in self._vectors.values() for key in keys]
        has_task = "task_index" in self._features
        columns = [*keys, "frame_index", *[self._success_key] * bool(self._success_key), *["task_index"] * has_task]
        table = self._opened(file, "numbers", columns, 4096).read(first, first + n)
        if not np.array_equal(_vector(table["frame_index"], 1)[:, 0], np.arange(n)):
            raise ValueError(f"frame_index of episode {i} is not 0 to {n - 1}")
        arrays: dict[str, Rows] = {}
        for name, parts in self._vectors.items():
            values = [_vector(table[key], math.prod(self._features[key]["shape"]), key) for key in parts]
            arrays[name] = np.concatenate(values, axis=1).astype(np.float32, copy=False)
        success = bool(_vector(table[self._success_key], 1)[-1, 0]) if self._success_key else True
        task = ""
        if has_task:
            numbers = _vector(table["task_index"], 1)[:, 0]
            if (numbers != numbers[0]).any():
                self.notes.add("tasks change within episodes: each has the one that it begins with.")
            if int(numbers[0]) not in self._tasks:
                raise ValueError(f"task_index of episode {i} is {numbers[0]}; meta/tasks has no such task")
            task = self._tasks[int(numbers[0])]
        return arrays, success, task

    def _image_rows(self, picture: _Picture, file: Path, first: int, n: int) -> _Frames:
        def read(start: int, stop: int) -> Iterator[np.ndarray]:
            while start < stop:
                behind = min(start + 16, stop)
                columns = self._opened(file, picture.key, [picture.key], 16)
                for data in pc.struct_field(columns.read(first + start, first + behind)[picture.key], "bytes"):
                    yield picture.from_bytes(data.as_py())
                start = behind

        return _Frames(read, file, n, picture, self._options.image_size)

    def _video_rows(self, picture: _Picture, i: int, n: int) -> _Frames:
        file = self._place(self._video_path, i, f"videos/{picture.key}", video_key=picture.key)
        first = 0
        with damage_named(self._where):
            if self._is_v3:
                seconds = [self._episodes[f"videos/{picture.key}/{end}_timestamp"][i].as_py() for end in ("from", "to")]
                first, behind = (round(second * self._fps) for second in seconds)
                if first < 0 or behind - first != n:
                    raise ValueError(f"{picture.key} of episode {i} spans {behind - first} frames; expected {n}")
            check = self._ours(f"crc32/{picture.key}", i)
        with damage_named(file):
            found = len(self._video(file, picture.key))
            if found < first + n or (not self._is_v3 and found != n):
                raise ValueError(f"it has {found} frames; expected {first + n} with episode {i}")
            if check is not None and self._video(file, picture.key).crc32(first, first + n) != check:
                raise ValueError(f"frames {first} to {first + n - 1} (episode {i}) fail their checksum")

        def read(start: int, stop: int) -> Iterator[np.ndarray]:
            video = self._video(file, picture.key)
            return (picture.from_frame(video, frame) for frame in video.frames(first + start, first + stop))

        return _Frames(read, file, n, picture, self._options.image_size)

    def _video(self, file: Path, key: str) -> Video:
        if key not in self._videos or self._videos[key][0] != file:
            if old := self._videos.pop(key, None):
                old[1].close()
            self._videos[key] = file, Video(file)
        return self._videos[key][1]


def depth_codes(depth_min: float, depth_max: float, shift: float, use_log: bool) -> np.ndarray:
    """The depth (4096,) uint16 mm of each 12-bit code of a depth video; 0 where it may be none.

    Args:    depth_min, depth_max: metres of the codes 0 and 4095.   shift: metres, of the logarithm.
    """
    at = np.arange(4096) / 4095
    if use_log:
        low, high = math.log(depth_min + shift), math.log(depth_max + shift)
        depth_m = np.exp(low + at * (high - low)) - shift
    else:
        depth_m = depth_min + at * (depth_max - depth_min)
    depth_mm = np.clip(np.rint(1000 * np.clip(depth_m, depth_min, depth_max)), 0, 65535).astype(np.uint16)
    depth_mm[0] = 0
    return depth_mm


def _read_table(file: Path) -> pa.Table:
    """A parquet file of metadata without its statistics."""
    with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        table = parquet.read([name for name in parquet.schema_arrow.names if not name.startswith("stats/")])
    table.validate(full=True)
    return table.replace_schema_metadata()


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError(f"{name} is {value!r}; expected a whole number")
    return value


def _is_vector(feature: dict[str, Any]) -> bool:
    return len(feature["shape"]) == 1 and feature["dtype"] not in ("string", "image", "video", "language")


def _names(feature: dict[str, Any], key: str) -> list[str]:
    """One name per dimension of a vector: as the feature says, or numbered."""
    (n,) = feature["shape"]
    if not 0 < n <= _MAX_SIDE:
        raise ValueError(f"{key} has shape [{n}]; expected 1 to {_MAX_SIDE} numbers")

    def flat(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [name for part in value.values() for name in flat(part)]
        return [name for part in value for name in flat(part)] if isinstance(value, list) else [str(value)]

    names = flat(feature.get("names") or [])
    return names if len(names) == n == len(set(names)) else [f"{key.rpartition('.')[2]}_{i}" for i in range(n)]


def _vector(column: pa.ChunkedArray, width: int, name: str = "") -> np.ndarray:
    """A column of numbers, or of lists of `width` numbers, as (n, width)."""
    values, n = column.combine_chunks(), len(column)
    if isinstance(values, pa.ChunkedArray):
        values = values.chunk(0)
    values.validate(full=True)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        if values.null_count or not pc.all(pc.equal(pc.list_value_length(values), width)).as_py():
            raise ValueError(f"{name} has rows that are not lists of {width}")
        values = pc.list_flatten(values)
    if values.null_count or len(values) != n * width:
        raise ValueError(f"{name} has {len(values)} numbers, {values.null_count} of them missing; expected {n * width}")
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is {values.type}; expected numbers")
    return array.reshape(n, width)
