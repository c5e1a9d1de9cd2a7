"""LeRobotDataset v3.0, written.

    <path>/.parts/000012/    what `append` commits, by renaming a folder: one episode
        data.parquet   <feature>.mp4   episode.json {id, task, length, ..., stats}
    <path>/data  videos  meta   what `finish` makes of them; meta/info.json last, then .parts goes

Killed while it appends, the episode is not there. Killed while it finishes, the parts still are, and it finishes anew.
Until it is finished, the data set takes its space twice.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from padpolicy.data.convert.lerobot_layout import EPISODES, INFO, OURS, block_checksum, feature_keys
from padpolicy.data.convert.lerobot_video import PIXELS, Video, encode, encoder, join
from padpolicy.data.convert.recording import ConvertError, DamagedError, damage_named
from padpolicy.data.layout import row_shape
from padpolicy.data.store import Episode, Rows, StoreSpec

DATA_MB, VIDEO_MB, CHUNK_FILES = 100, 200, 1000  # of a file at most, and files in a folder; as the format has them
_VIDEO_S = 1000.0  # of a file at most: the format's reader compares float32 seconds to 1e-4, which they hold up to 1024
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES_PATH = EPISODES + "/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_PARTS, _OLD_PARTS = ".parts", ".parts.old"
_BLOCK_BYTES = 32 << 20  # of pictures in memory at once
_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_RECORDERS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


class LeRobotWriter:
    """A v3.0 data set that is being written."""

    def __init__(self, path: Path, spec: StoreSpec) -> None:
        """Goes on with what is at `path`.

        Raises:  ConvertError for a recording that the format cannot hold.
        """
        if not spec.dt_s > 0:
            raise ConvertError("a LeRobotDataset has one frame rate, and this recording has none (dt_s is 0).")
        self._path, self._spec, self._parts = path, spec, path / _PARTS
        self._fps = Fraction(1 / spec.dt_s).limit_denominator(1001)
        self._fields, self._keys = spec.fields(), feature_keys(spec)
        if len(set(self._keys.values())) < len(self._keys) or any("/" in key for key in self._keys.values()):
            raise ConvertError(
                f"cameras {sorted(spec.cameras)}: names with '/', or with one called as another's depth."
            )
        self._features = self._describe()
        shutil.rmtree(path / _OLD_PARTS, ignore_errors=True)
        self._is_finished = (path / INFO).is_file() and not self._parts.exists()
        self._tasks = [str(task["name"]) for task in spec.tasks]
        self._ids: list[str] = []
        self._rows = 0
        if self._is_finished:
            for file in sorted((path / EPISODES).glob("*/*.parquet")):
                self._ids += pq.read_table(file, columns=[f"{OURS}/id"]).column(0).to_pylist()
            return
        self._parts.mkdir(parents=True, exist_ok=True)
        for leftover in self._parts.glob("*.partial"):
            shutil.rmtree(leftover)
        for folder in self._folders():
            self._count(_read_part(folder))

    @property
    def done(self) -> set[str]:
        """Ids of the episodes that are committed."""
        return set(self._ids)

    def append(self, episode: Episode) -> None:
        """Adds and commits one episode, all of it or nothing.

        Raises:  DamagedError if its arrays cannot be read or do not fit.
        """
        if self._is_finished:
            raise ConvertError(f"{self._path} is finished, and episode {episode.id} is not in it. Remove it first.")
        n, number = len(episode), len(self._ids)
        name = episode.id or f"episode-{number:06d}"
        arrays = self._checked(episode, name)
        times = np.asarray(arrays.pop("timestamp")[0:n], np.float64) if "timestamp" in arrays else None
        if times is not None and (len(times) != n or not np.isfinite(times).all() or (np.diff(times) <= 0).any()):
            raise DamagedError(f"{name}: timestamp is not increasing seconds.")
        task = str(episode.task)
        part: dict[str, Any] = {
            "id": name,
            "task": task,
            "length": n,
            "source": str(episode.source),
            "seed": int(episode.seed),
            "success": bool(episode.success),
            "absent": [field for field in self._fields if field not in arrays],
            "timestamp": None
            if times is None or np.array_equal(times, np.arange(n) * self._spec.dt_s)
            else times.tolist(),
        }
        folder = self._parts / f"{number:06d}.partial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            numbers: dict[str, np.ndarray] = {
                "timestamp": (np.arange(n) / float(self._fps)).astype(np.float32),
                "frame_index": np.arange(n),
                "episode_index": np.full(n, number),
                "index": self._rows + np.arange(n),
                "task_index": np.full(n, (self._tasks if task in self._tasks else [*self._tasks, task]).index(task)),
            }
            for field, key in self._keys.items():
                if not field.startswith(("rgb_", "depth_")):
                    numbers[key] = self._vector(arrays.get(field), field, n, name)
            part["stats"] = {key: vector_stats(values) for key, values in numbers.items()}
            part["crc32"] = {}
            for field, key in self._keys.items():
                if field.startswith("rgb_"):
                    part["stats"][key], part["crc32"][key] = self._write_video(folder, field, arrays.get(field), n)
            part["stats"] |= self._write_data(folder / "data.parquet", numbers, arrays, n)
            _write_json(folder / "episode.json", part)
            os.rename(folder, self._parts / f"{number:06d}")  # the commit
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._count(part)

    def finish(self) -> None:
        """Makes the data set of what was appended."""
        if self._is_finished:
            return
        for name in ("data", "videos", "meta"):
            shutil.rmtree(self._path / name, ignore_errors=True)
        places: dict[str, list[Any]] = {}  # columns of the episodes' table that say where each is
        self._finish_data(places)
        for key, feature in self._features.items():
            if feature["dtype"] == "video":
                self._finish_video(key, places)
        total = self._finish_episodes(places)
        self._finish_tasks()
        _write_json(self._path / "meta/stats.json", {key: stats.to_dict() for key, stats in total.items()})
        spec = json.loads(json.dumps(self._spec.to_dict()))  # as it will be read
        info = {
            "codebase_version": "v3.0",
            "robot_type": self._spec.robot or None,
            "total_episodes": len(self._ids),
            "total_frames": self._rows,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": self._fps.numerator if self._fps.denominator == 1 else float(self._fps),
            "splits": {"train": f"0:{len(self._ids)}"},
            "data_path": _DATA_PATH,
            "video_path": _VIDEO_PATH if self._spec.cameras else None,
            "features": self._features,
            OURS: {"spec": spec, "crc32": block_checksum(spec)},
        }
        _write_json(self._path / INFO, info)
        os.rename(self._parts, self._path / _OLD_PARTS)
        shutil.rmtree(self._path / _OLD_PARTS)
        self._is_finished = True

    def close(self) -> None:
        """Nothing is open between two calls."""

    # -- an episode ----------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, dict[str, Any]]:
        """`features` of info.json."""
        fps = self._fps.numerator if self._fps.denominator == 1 else float(self._fps)
        features: dict[str, dict[str, Any]] = {}
        for field, key in self._keys.items():
            if field.startswith("rgb_"):
                size = self._spec.cameras[field.partition("_")[2]]["size"]
                _, codec, options = encoder()
                info = {
                    "height": size[0],
                    "width": size[1],
                    "codec": codec,
                    "pix_fmt": PIXELS,
                    "fps": fps,
                    "channels": 3,
                }
                info = {f"video.{name}": value for name, value in (info | options).items()}
                info |= {"has_audio": False, "is_depth_map": False}
                features[key] = {
                    "dtype": "video",
                    "shape": [*size, 3],
                    "names": ["height", "width", "channels"],
                    "info": info,
                }
            elif field.startswith("depth_"):
                size = self._spec.cameras[field.partition("_")[2]]["size"]
                info = {"is_depth_map": True, "depth_unit": "mm"}
                features[key] = {
                    "dtype": "image",
                    "shape": [*size, 1],
                    "names": ["height", "width", "channels"],
                    "info": info,
                }
            else:
                names = list(self._fields[field]["names"])
                features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
        recorders = {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in _RECORDERS.items()}
        return features | recorders

    def _checked(self, episode: Episode, name: str) -> dict[str, Rows]:
        """The episode's arrays, names, shapes and dtypes checked."""
        arrays, expected = dict(episode.arrays), [*self._fields, "timestamp"]
        missing = set(expected) - set(arrays) - set(self._spec.optional) - {"timestamp"}
        if missing or set(arrays) - set(expected) or not len(episode):
            raise DamagedError(f"{name}: it has {sorted(arrays)}; expected {expected} and at least one step.")
        attrs = {"fields": self._fields, "cameras": self._spec.cameras}
        for field, rows in arrays.items():
            shape, dtype = row_shape(field, attrs)
            fits = np.can_cast(rows.dtype, dtype, "same_kind") and (dtype[0] != "u" or rows.dtype == dtype)
            if tuple(rows.shape) != (len(episode), *shape) or not fits:
                raise DamagedError(
                    f"{name}: {field} is {rows.dtype} {tuple(rows.shape)}; expected {np.dtype(dtype)} "
                    f"{(len(episode), *shape)}."
                )
        return arrays

    def _vector(self, rows: Rows | None, field: str, n: int, name: str) -> np.ndarray:
        """Numbers (n, dims) float32; zeros where the field is absent."""
        if rows is None:
            return np.zeros((n, len(self._fields[field]["names"])), np.float32)
        values = np.asarray(rows[0:n]).astype(np.float32, copy=False)
        if len(values) != n or not np.isfinite(values).all():
            raise DamagedError(f"{name}: {field} is NaN, infinite or cut off. Drop or repair the episode.")
        return values

    def _frames(self, field: str, rows: Rows | None, n: int, histogram: Histogram) -> Iterator[np.ndarray]:
        """The pictures of an episode, black ones where the field is absent; a sample of them is counted."""
        shape, dtype = row_shape(field, {"fields": self._fields, "cameras": self._spec.cameras})
        black = np.zeros(shape, dtype)
        block = max(_BLOCK_BYTES // black.nbytes, 1)
        wanted = sampled(n)
        for start in range(0, n, block):
            stop = min(start + block, n)
            frames: Iterable[np.ndarray] = [black] * (stop - start) if rows is None else np.asarray(rows[start:stop])
            for i, frame in enumerate(frames, start):
                if i in wanted:
                    histogram.add(frame)
                yield frame

    def _write_video(self, folder: Path, field: str, rows: Rows | None, n: int) -> tuple[dict[str, Any], int]:
        """Encodes a camera's pictures. Returns their statistics and the checksum of the encoded frames."""
        size, histogram = self._spec.cameras[field.partition("_")[2]]["size"], Histogram(256)
        file = folder / f"{self._keys[field]}.mp4"
        encode(file, self._frames(field, rows, n, histogram), tuple(size), self._fps)
        video = Video(file)
        try:
            if len(video) != n:
                raise ConvertError(f"{file}: {len(video)} frames were written; expected {n}.")
            return histogram.stats(255), video.crc32(0, n)
        finally:
            video.close()

    def _write_data(
        self, file: Path, numbers: dict[str, np.ndarray], arrays: dict[str, Rows], n: int
    ) -> dict[str, Any]:
        """Writes the rows of an episode, a row group unless depth makes it large. Returns the statistics of depth."""
        schema = arrow_schema(self._features)
        histograms = {field: Histogram(1 << 16) for field in self._keys if field.startswith("depth_")}
        depth = {field: self._frames(field, arrays.get(field), n, each) for field, each in histograms.items()}
        with pq.ParquetWriter(file, schema, **_parquet_options()) as writer:
            start = 0
            while start < n:
                pictures: dict[str, list[dict[str, Any]]] = {field: [] for field in depth}
                stop, held = start, 0
                while stop < n and held < _BLOCK_BYTES:
                    for field, frames in depth.items():
                        data = tiff(next(frames))
                        held += len(data)
                        pictures[field].append({"bytes": data, "path": f"frame-{stop:06d}.tiff"})
                    stop += 1
                columns = {
                    self._keys[field]: pa.array(rows, schema.field(self._keys[field]).type)
                    for field, rows in pictures.items()
                }
                for key, values in numbers.items():
                    columns[key] = arrow_column(values[start:stop], schema.field(key).type)
                writer.write_table(
                    pa.table([columns[key] for key in schema.names], schema), row_group_size=stop - start
                )
                start = stop
        return {self._keys[field]: histogram.stats(1) for field, histogram in histograms.items()}

    # -- all of them ---------------------------------------------------------------------------------------------

    def _folders(self) -> list[Path]:
        return sorted(folder for folder in self._parts.iterdir() if folder.is_dir() and not folder.suffix)

    def _count(self, part: dict[str, Any]) -> None:
        self._ids.append(part["id"])
        self._rows += part["length"]
        if part["task"] not in self._tasks:
            self._tasks.append(part["task"])

    def _finish_data(self, places: dict[str, list[Any]]) -> None:
        writer: pq.ParquetWriter | None = None
        file, bytes_in = -1, 0
        for folder in self._folders():
            part = folder / "data.parquet"
            if writer is None or bytes_in + part.stat().st_size > DATA_MB << 20:
                if writer is not None:
                    writer.close()
                file, bytes_in = file + 1, 0
                path = _make_room(self._path / _DATA_PATH.format(**_chunk(file)))
                writer = pq.ParquetWriter(path, arrow_schema(self._features), **_parquet_options())
            bytes_in += part.stat().st_size
            with damage_named(part), pq.ParquetFile(part, page_checksum_verification=True) as source:
                for group in range(source.num_row_groups):
                    writer.write_table(source.read_row_group(group))
            for name, value in _chunk(file).items():
                places.setdefault(f"data/{name}", []).append(value)
        if writer is not None:
            writer.close()

    def _finish_video(self, key: str, places: dict[str, list[Any]]) -> None:
        group: list[tuple[Path, int]] = []
        file, bytes_in, frames_in = 0, 0, 0
        for folder in self._folders():
            part, n = folder / f"{key}.mp4", _read_part(folder)["length"]
            size = part.stat().st_size
            if group and (bytes_in + size > VIDEO_MB << 20 or (frames_in + n) / self._fps > _VIDEO_S):
                self._join(key, file, group)
                group, file, bytes_in, frames_in = [], file + 1, 0, 0
            place = {**_chunk(file), "from_timestamp": float(frames_in / self._fps)}
            bytes_in, frames_in = bytes_in + size, frames_in + n
            place["to_timestamp"] = float(frames_in / self._fps)
            group.append((part, n))
            for name, value in place.items():
                places.setdefault(f"videos/{key}/{name}", []).append(value)
        self._join(key, file, group)

    def _join(self, key: str, file: int, group: list[tuple[Path, int]]) -> None:
        path = _make_room(self._path / _VIDEO_PATH.format(video_key=key, **_chunk(file)))
        with damage_named(group[0][0].parent):
            join(group, path, self._fps)

    def _finish_episodes(self, places: dict[str, list[Any]]) -> dict[str, Stats]:
        """Writes the episodes' tables. Returns the statistics of all of them."""
        total = {key: Stats() for key in self._features}
        schema = self._episodes_schema()
        writer: pq.ParquetWriter | None = None
        rows: list[dict[str, Any]] = []
        file, index, folders, texts = 0, 0, self._folders(), self._texts()
        for i, folder in enumerate(folders):
            part = _read_part(folder)
            if writer is None:
                path = _make_room(self._path / _EPISODES_PATH.format(**_chunk(file)))
                writer = pq.ParquetWriter(path, schema, **_parquet_options())
            absent = {self._keys[field] for field in part["absent"]}
            row = {"episode_index": i, "tasks": [texts[self._tasks.index(part["task"])]], "length": part["length"]}
            row |= {name: values[i] for name, values in places.items()}
            row |= {"dataset_from_index": index, "dataset_to_index": index + part["length"]}
            for key, stats in part["stats"].items():
                row |= {f"stats/{key}/{name}": value for name, value in stats.items()}
                if key not in absent:
                    total[key].add(stats)
            row |= {f"meta/episodes/{name}": value for name, value in _chunk(file).items()}
            row |= {
                f"{OURS}/{name}": part[name]
                for name in ("id", "task", "source", "seed", "success", "absent", "timestamp")
            }
            row |= {f"{OURS}/crc32/{key}": value for key, value in part["crc32"].items()}
            rows.append(row)
            index += part["length"]
            is_last = i + 1 == len(folders)
            if len(rows) == 200 or is_last:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
                if is_last or path.stat().st_size > DATA_MB << 20:
                    writer.close()
                    writer, file = None, file + 1
        for key, stats in total.items():
            if not stats.count:  # absent from every episode: what stands in for it
                stats.add(_read_part(folders[0])["stats"][key])
        return total

    def _episodes_schema(self) -> pa.Schema:
        place = [("chunk_index", pa.int64()), ("file_index", pa.int64())]
        seconds = [("from_timestamp", pa.float64()), ("to_timestamp", pa.float64())]
        columns = [("episode_index", pa.int64()), ("tasks", pa.list_(pa.string())), ("length", pa.int64())]
        columns += [(f"data/{name}", kind) for name, kind in place]
        columns += [("dataset_from_index", pa.int64()), ("dataset_to_index", pa.int64())]
        videos = [key for key, feature in self._features.items() if feature["dtype"] == "video"]
        columns += [(f"videos/{key}/{name}", kind) for key in videos for name, kind in (*place, *seconds)]
        for key, feature in self._features.items():
            numbers = pa.list_(pa.float64())
            if feature["dtype"] in ("video", "image"):
                numbers = pa.list_(pa.list_(numbers))
            columns += [(f"stats/{key}/{name}", numbers) for name in ("min", "max", "mean", "std", *_QUANTILES)]
            columns.append((f"stats/{key}/count", pa.list_(pa.int64())))
        columns += [(f"meta/episodes/{name}", kind) for name, kind in place]
        ours = {
            "id": pa.string(),
            "task": pa.string(),
            "source": pa.string(),
            "seed": pa.int64(),
            "success": pa.bool_(),
        }
        ours |= {"absent": pa.list_(pa.string()), "timestamp": pa.list_(pa.float64())}
        columns += [(f"{OURS}/{name}", kind) for name, kind in ours.items()]
        columns += [(f"{OURS}/crc32/{key}", pa.int64()) for key in videos]
        return pa.schema(columns)

    def _texts(self) -> list[str]:
        """Per task the instruction that others read: its first paraphrase, or its name where two have the same."""
        known = {str(task["name"]): task for task in self._spec.tasks}
        texts = [(known.get(name, {}).get("paraphrases") or [name])[0] for name in self._tasks]
        return [text if texts.count(text) == 1 else name for text, name in zip(texts, self._tasks, strict=True)]

    def _finish_tasks(self) -> None:
        """A table whose index, for pandas, is the text."""
        texts = self._texts()
        table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), "task": pa.array(texts, pa.string())})
        kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
        pandas = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
                for name, (kind, numpy_kind) in kinds.items()
            ],
        }
        table = table.replace_schema_metadata({"pandas": json.dumps(pandas)})
        pq.write_table(table, _make_room(self._path / "meta/tasks.parquet"), **_parquet_options())


# -- statistics --------------------------------------------------------------------------------------------------


def sampled(n: int) -> set[int]:
    """Which of an episode's `n` pictures go into its statistics: n ** 0.75 of them, from 100 to 10000."""
    return set(np.linspace(0, n - 1, max(min(n, 100), min(int(n**0.75), 10_000))).round().astype(int).tolist())


class Histogram:
    """Counts of the values of pictures, per channel: exact quantiles in constant memory."""

    def __init__(self, levels: int) -> None:
        self._levels, self._pictures = levels, 0
        self._counts: np.ndarray | None = None

    def add(self, frame: np.ndarray) -> None:
        """One picture (H, W, C) or (H, W); of a large one every few pixels."""
        side = max(frame.shape[:2])
        step = side // 150 if side >= 300 else 1
        values = frame[::step, ::step].reshape(-1, frame.shape[2] if frame.ndim == 3 else 1)
        counts = np.stack([np.bincount(channel, minlength=self._levels) for channel in values.T])
        self._counts = counts if self._counts is None else self._counts + counts
        self._pictures += 1

    def stats(self, unit: float) -> dict[str, Any]:
        """Lists (C, 1, 1), in units of so many levels; `count` is of pictures."""
        assert self._counts is not None
        level, below = np.arange(self._levels), self._counts.cumsum(1)
        total = below[:, -1]
        mean = self._counts @ level / total
        var = [counts @ (level - m) ** 2 / n for counts, m, n in zip(self._counts, mean, total, strict=True)]
        found = {
            "min": (below > 0).argmax(1),
            "max": (below == total[:, None]).argmax(1),
            "mean": mean,
            "std": np.sqrt(var),
        }
        found |= {name: (below >= q * total[:, None]).argmax(1) for name, q in _QUANTILES.items()}
        shaped = {name: (np.asarray(value) / unit).reshape(-1, 1, 1).tolist() for name, value in found.items()}
        return shaped | {"count": [self._pictures]}


def vector_stats(values: np.ndarray) -> dict[str, Any]:
    """Statistics over the rows of (n,) or (n, D) numbers: lists (1,) or (D,)."""
    rows = values.astype(np.float64).reshape(len(values), -1)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    found |= dict(zip(_QUANTILES, np.quantile(rows, list(_QUANTILES.values()), axis=0), strict=True))
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(values)]}


class Stats:
    """Statistics of all episodes together; quantiles are the means of the episodes', as in the format's own writer."""

    def __init__(self) -> None:
        self.count = 0
        self._found: dict[str, np.ndarray] = {}

    def add(self, stats: dict[str, Any]) -> None:
        """Those of one more episode."""
        n = stats["count"][0]
        new = {name: np.array(value) for name, value in stats.items() if name != "count"}
        old = self._found or new
        share = n / (self.count + n)
        self._found = {name: old[name] + (new[name] - old[name]) * share for name in new}
        self._found |= {"min": np.minimum(old["min"], new["min"]), "max": np.maximum(old["max"], new["max"])}
        apart = share * (1 - share) * (new["mean"] - old["mean"]) ** 2
        self._found["std"] = np.sqrt(old["std"] ** 2 * (1 - share) + new["std"] ** 2 * share + apart)
        self.count += n

    def to_dict(self) -> dict[str, Any]:
        return {name: value.tolist() for name, value in self._found.items()} | {"count": [self.count]}


# -- parquet -----------------------------------------------------------------------------------------------------


def arrow_schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    """Columns of data/, with the description that Hugging Face datasets reads."""
    columns, described = [], {}
    for key, feature in features.items():
        if feature["dtype"] == "video":
            continue
        kind: dict[str, Any] = {"dtype": feature["dtype"], "_type": "Value"}
        if feature["dtype"] == "image":
            arrow = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            kind = {"_type": "Image"}
        else:
            arrow = {"float32": pa.float32(), "int64": pa.int64()}[feature["dtype"]]
            if feature["shape"] != [1]:
                arrow = pa.list_(arrow, feature["shape"][0])
                kind = {"feature": kind, "length": feature["shape"][0], "_type": "Sequence"}
        columns.append((key, arrow))
        described[key] = kind
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def arrow_column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Numbers (n,) or (n, D) as a column of scalars or of lists."""
    flat = pa.array(values.reshape(-1), kind.value_type if pa.types.is_fixed_size_list(kind) else kind)
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size) if pa.types.is_fixed_size_list(kind) else flat


def tiff(depth: np.ndarray) -> bytes:
    """Depth (H, W) uint16 as a losslessly compressed picture."""
    stream = io.BytesIO()
    Image.fromarray(depth).save(stream, "TIFF", compression="tiff_adobe_deflate")
    return stream.getvalue()


def _parquet_options() -> dict[str, Any]:
    return {"compression": "snappy", "use_dictionary": ["episode_index", "task_index"], "write_page_checksum": True}


# -- files -------------------------------------------------------------------------------------------------------


def _chunk(file: int) -> dict[str, int]:
    """Where the file of a number stands."""
    return {"chunk_index": file // CHUNK_FILES, "file_index": file % CHUNK_FILES}


def _make_room(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _read_part(folder: Path) -> dict[str, Any]:
    with damage_named(folder / "episode.json"):
        return json.loads((folder / "episode.json").read_text(encoding="utf-8"))


def _write_json(file: Path, value: Any) -> None:
    """By an atomic rename."""
    temporary = _make_room(file).with_suffix(".partial")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, file)
