"""RLDS tfrecords, the form of Open X-Embodiment, as TensorFlow Datasets writes them; read without TensorFlow.

    <version>/features.json                       what a step holds: names, shapes, dtypes, encodings
    <version>/dataset_info.json                   splits, and how many episodes each file has (may be missing)
    <version>/<name>-<split>.tfrecord-00000-of-00042

A file is a row of records, each an episode: its length (uint64, little-endian), a checksum of that, a tf.train.Example
and a checksum of it. An Example is a flat table, "steps/observation/image_0" -> one value per step. Opening reads the
lengths, and as many episodes as it takes to see each camera once (`Recorded._look`). An episode is read when it is
asked for, and its pictures are decoded when their rows are.
"""

from __future__ import annotations

import functools
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from padpolicy.data.actions import ActionSpec
from padpolicy.data.convert.recording import ConvertError, DamagedError, Notes, Options, action_notes
from padpolicy.data.letterbox import letterbox
from padpolicy.data.store import Episode, StoreSpec

NAME = "RLDS tfrecords (Open X-Embodiment)"
_SHARD = re.compile(r"(?P<dataset>.+)-(?P<split>[^-]+)\.tfrecord(-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?")
_CAMERA_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_OBSERVATION = "steps/observation/"
_REWARD, _SOURCE = "steps/reward", "episode_metadata/file_path"
_INSTRUCTIONS = ("steps/language_instruction", "steps/observation/natural_language_instruction")
_POSE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_NUMBERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64")
_PROTO = """
    name: "padpolicy/example.proto"  package: "padpolicy"  syntax: "proto3"
    message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
    message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
    message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
    message_type {
      name: "Feature"
      oneof_decl { name: "kind" }
      field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".padpolicy.BytesList" oneof_index: 0 }
      field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: ".padpolicy.FloatList" oneof_index: 0 }
      field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".padpolicy.Int64List" oneof_index: 0 }
    }
    message_type {
      name: "Features"
      field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".padpolicy.Features.Pair" }
      nested_type {
        name: "Pair"
        field { name: "key" number: 1 type: TYPE_STRING }
        field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".padpolicy.Feature" }
      }
    }
    message_type {
      name: "Example"
      field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".padpolicy.Features" }
    }
"""  # tf.train.Example; its map is a list of entries, which is the same on disk
_MOST = 100_000  # pixels along an edge, numbers a step
_MOST_EPISODES = 10_000_000  # of a file


# -- the files ---------------------------------------------------------------------------------------------------


class _Record(NamedTuple):
    """Where an episode is."""

    file: Path
    number: int
    start: int = 0  # byte of its Example
    length: int = 0
    problem: str = ""  # why it cannot be read


def _roots(path: Path) -> list[Path]:
    """The folders of data sets in `path`: itself, else those up to two levels below."""
    for depth in ("", "*/", "*/*/") if path.is_dir() else ():
        if found := {file.parent for name in ("features.json", "*.tfrecord*") for file in path.glob(depth + name)}:
            return sorted(found)
    return []


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except Exception as error:  # missing, not UTF-8, not JSON, nested too deeply
        raise ConvertError(f"{file}: cannot be read ({error}). Copy it again from its source.") from error
    if not isinstance(content, dict):
        raise ConvertError(f"{file}: expected a JSON object, got {type(content).__name__}. Copy it again.")
    return content


def _records(root: Path, notes: Notes) -> Iterator[tuple[str, _Record]]:
    """Every episode's id, "split/file/record", and place, also of those that are missing."""
    files: dict[str, dict[int, Path]] = {}
    counts: dict[str, set[int]] = {}
    for file in sorted(root.glob("*.tfrecord*")):
        if match := _SHARD.fullmatch(file.name):
            split = match["split"]
            if files.setdefault(split, {}).setdefault(int(match["shard"] or 0), file) is not file:
                raise ConvertError(f"{root}: {file.name} is of another data set. Give each a folder of its own.")
            counts.setdefault(split, set()).add(int(match["shards"] or 1))
    if not files:
        raise ConvertError(f"{root}: no files <name>-<split>.tfrecord-00000-of-00001. Copy them beside features.json.")
    promised = _promised(root / "dataset_info.json")
    if extra := sorted(set(files) - set(promised or files)):
        raise ConvertError(f"{root}: dataset_info.json knows no split {extra[0]!r}, of which there are files.")
    for split, lengths in (promised or {name: [None] * max(counts[name]) for name in files}).items():
        if counts.get(split, {len(lengths)}) != {len(lengths)}:
            raise ConvertError(
                f"{root}: split {split!r} should have {len(lengths)} files; those that are there are named "
                f"-of-{max(counts[split]):05d}. Copy the data set again."
            )
        for shard, length in enumerate(lengths):
            missing = root / f"*-{split}.tfrecord-{shard:05d}-of-{len(lengths):05d}"
            for record in _scan(files.get(split, {}).get(shard, missing), length, notes):
                yield f"{split}/{shard:05d}/{record.number}", record


def _promised(file: Path) -> dict[str, list[int | None]] | None:
    """Split -> episodes of each of its files, from dataset_info.json; None without it."""
    if not file.exists():
        return None
    info = _load(file)
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise ConvertError(f"{file}: fileFormat is {info['fileFormat']!r}; only tfrecord is read. Export it as that.")
    try:
        found = {str(split["name"]): [int(n) for n in split.get("shardLengths", [])] for split in info["splits"]}
    except Exception as error:
        raise ConvertError(f"{file}: expected splits with name and shardLengths ({error!r}). Copy it again.") from error
    if any(not 0 <= n <= _MOST_EPISODES for lengths in found.values() for n in lengths):
        raise ConvertError(f"{file}: shardLengths beyond 0..{_MOST_EPISODES}. Copy it again.")
    return {split: [*lengths] for split, lengths in found.items() if lengths}


def _scan(file: Path, promised: int | None, notes: Notes) -> Iterator[_Record]:
    """The records of a file, by their lengths; those that are promised and not there have a `problem`."""
    n, problem = 0, ""
    try:
        size = file.stat().st_size
        with open(file, "rb", buffering=0) as stream:
            at = 0
            while at < size:
                stream.seek(at)
                header = stream.read(12)
                length = int.from_bytes(header[:8], "little")
                if _masked_crc(header[:8]) != header[8:]:
                    problem = f"the length of record {n}, at byte {at}, fails its checksum"
                    break
                if at + 16 + length > size:
                    problem = f"it ends inside record {n}, at byte {size} of {at + 16 + length}"
                    break
                yield _Record(file, n, at + 12, length)
                n, at = n + 1, at + 16 + length
    except FileNotFoundError:
        problem = "the file is missing"
    except OSError as error:
        problem = f"it cannot be read ({error})"
    if promised is None:
        promised = n + bool(problem)
    elif n > promised:
        raise ConvertError(f"{file}: more records than the {promised} that dataset_info.json says. Copy both again.")
    elif problem and n == promised:
        notes.add(f"{file.name}: {problem}; it has all {n} records that it should have.")
    for number in range(n, promised):
        yield _Record(file, number, problem=problem or f"it ends behind record {n - 1} of {promised}")


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


@functools.cache
def example_class() -> Any:
    """The message class of tf.train.Example: features{feature[{key, value{bytes_list | float_list | int64_list}}]}."""
    file = text_format.Parse(_PROTO, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("padpolicy.Example"))


# -- what a step holds -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Feature:
    """One entry of features.json."""

    kind: str  # "tensor", "image", "text" or "other"
    shape: tuple[int, ...] = ()  # -1: any
    dtype: str = ""
    encoding: str = "none"  # of a tensor
    doc: str = ""
    optional: bool = False

    @property
    def is_numbers(self) -> bool:
        return self.kind == "tensor" and self.dtype in _NUMBERS and -1 not in self.shape and prod(self.shape) <= _MOST


def _features(file: Path) -> dict[str, _Feature]:
    """What features.json says of every entry of an Example."""
    content = _load(file)
    try:
        tree = dict(content["featuresDict"]["features"])
        tree["steps"] = tree["steps"]["sequence"]["feature"]
        return {path: feature for name in sorted(tree) for path, feature in _flat(tree[name], name)}
    except Exception as error:
        raise ConvertError(
            f"{file}: expected the features of an RLDS data set, with a sequence `steps` of tensors, images and texts "
            f"({type(error).__name__}: {error}). Copy it again, or prepare the data set with a newer tfds."
        ) from error


def _flat(node: dict[str, Any], path: str) -> Iterator[tuple[str, _Feature]]:
    kind = next((kind for kind in ("featuresDict", "tensor", "image", "text") if kind in node), "other")
    values = node.get(kind, {})
    if kind == "featuresDict":
        for name in sorted(values["features"]):
            yield from _flat(values["features"][name], f"{path}/{name}")
        return
    shape = tuple(int(n) for n in values.get("shape", {}).get("dimensions", (-1, -1, 3) if kind == "image" else ()))
    if any(not (n == -1 or 0 < n <= _MOST) for n in shape) or (kind == "image" and len(shape) != 3):
        raise ValueError(f"{path} has shape {shape}")
    if shape.count(-1) > 1 and kind == "tensor":  # stored as two entries, a value and a shape
        kind = "other"
    dtype, encoding, doc = values.get("dtype", "uint8"), values.get("encoding", "none"), node.get("description", "")
    yield path, _Feature(kind, shape, str(dtype), str(encoding), str(doc), bool(values.get("optional")))


def _flag(name: str) -> str:
    """The entry that says whether an episode has a camera."""
    return "episode_metadata/has_" + name.removeprefix(_OBSERVATION)


def _words(name: str) -> frozenset[str]:
    """What says which camera a picture is of: "wrist_depth" and "image_wrist" are both of {"wrist"}."""
    return frozenset(re.split(r"[_/.-]", name.lower())) - {"depth", "image", "rgb"}


def _names(path: str, feature: _Feature) -> list[str]:
    """Of the numbers of a tensor: what its description lists, else its own name and a number."""
    if path == "steps/action" and feature.shape == (7,):
        if re.search(".*?".join(rf"\b{name}\b" for name in _POSE), feature.doc.lower(), re.DOTALL):
            return list(_POSE)
    name = path.removeprefix("steps/").removeprefix("observation/").removeprefix("action/").replace("/", "_")
    return [f"{name}_{i}" for i in range(prod(feature.shape))] if feature.shape else [name]


# -- an episode --------------------------------------------------------------------------------------------------


class _Example:
    """The entries of one record, each with one value after another."""

    def __init__(self, record: _Record) -> None:
        """Reads it. Raises DamagedError."""
        self.where = f"{record.file}: record {record.number}"
        if record.problem:
            raise self.damaged(f"is not there: {record.problem}")
        try:
            with open(record.file, "rb") as stream:
                stream.seek(record.start)
                data, crc = stream.read(record.length), stream.read(4)
            if _masked_crc(data) != crc:
                raise ValueError("it fails its checksum")
            entries = example_class().FromString(data).features.feature
            self.entries: Mapping[str, Any] = {entry.key: entry.value for entry in entries}
        except Exception as error:
            raise self.damaged(f"cannot be read: {error}") from error

    def damaged(self, what: str) -> DamagedError:
        return DamagedError(f"{self.where} {what}.")

    def values(self, path: str) -> Sequence[Any]:
        if path not in self.entries:
            raise self.damaged(f"lacks {path}, which features.json has")
        kind = self.entries[path].WhichOneof("kind")
        return getattr(self.entries[path], kind).value if kind else ()

    def numbers(self, path: str, feature: _Feature, steps: int) -> np.ndarray:
        """(steps, n) float32, finite."""
        values, width = self.values(path), prod(feature.shape)
        try:
            if feature.encoding == "none":
                flat = np.array(values, np.float64)
            else:
                size = width * np.dtype(feature.dtype).itemsize
                data = b"".join(_unpacked(value, feature.encoding, size) for value in values)
                flat = np.frombuffer(data, np.dtype(feature.dtype).newbyteorder("<"))
            with np.errstate(over="ignore"):
                rows = flat.reshape(steps, width).astype(np.float32)
        except Exception as error:
            raise self.damaged(f"has {path}, which does not fit features.json ({error})") from error
        if not np.isfinite(rows).all():
            raise self.damaged(f"has NaN or infinity in {path} at step {np.argmin(np.isfinite(rows).all(1))}")
        return rows

    def text(self, path: str) -> str:
        """The first value that is not empty; "" if there is none, or no such entry."""
        values = self.values(path) if path in self.entries else ()
        texts = (value.decode("utf-8", "replace").strip() for value in values if isinstance(value, bytes))
        return next(filter(None, texts), "")

    def says_absent(self, path: str) -> bool:
        """Does its metadata say that this camera was not there?"""
        return _flag(path) in self.entries and not any(self.values(_flag(path)))

    def is_blank(self, path: str) -> bool:
        """Has every picture one colour only, as what is stored in place of a camera that was not there?"""
        for data in dict.fromkeys(self.values(path)):
            try:
                pixels = np.asarray(_open_picture(data))
            except Exception:  # nothing is stored, or nothing that is a picture
                continue
            if (pixels != pixels[:1, :1]).any():
                return False
        return True


def _unpacked(data: bytes, encoding: str, size: int) -> bytes:
    """The `size` bytes of a tensor that was stored as `encoding`."""
    if encoding == "zlib":
        data = zlib.decompressobj().decompress(data, size + 1)
    if len(data) != size:
        raise ValueError(f"expected {size} bytes a step, got {len(data)}")
    return data


def _open_picture(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))


class _Pictures:
    """The pictures of a camera in one episode, decoded when they are asked for: rgb uint8, or depth uint16."""

    def __init__(self, example: _Example, path: str, size: tuple[int, int], square: int, is_rgb: bool) -> None:
        """Args: size: (height, width).   square: pixels that they are letterboxed to; 0: they must be of this size."""
        self._example, self._path, self._data = example, path, example.values(path)
        self._size, self._square, self._is_rgb = size, square, is_rgb
        self.shape = (len(self._data), *size, 3) if is_rgb else (len(self._data), *size)
        self.dtype = np.dtype(np.uint8 if is_rgb else np.uint16)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.stack([self._picture(i) for i in range(*rows.indices(len(self._data)))])

    def _picture(self, i: int) -> np.ndarray:
        try:
            picture = _open_picture(self._data[i])
            if not self._square and (picture.height, picture.width) != self._size:
                size = f"{picture.height} x {picture.width} pixels, expected {self._size[0]} x {self._size[1]}"
                raise ValueError(f"{size}; --image-size makes different ones equal")
            if picture.mode.startswith("I") == self._is_rgb:
                raise ValueError(f"its mode is {picture.mode}; expected {8 if self._is_rgb else 16} bits a channel")
            pixels = np.asarray(picture.convert("RGB") if self._is_rgb else picture).astype(self.dtype, copy=False)
        except Exception as error:
            raise self._example.damaged(
                f"has {self._path} with a picture that cannot be used, {i} ({error})"
            ) from error
        return letterbox(pixels, self._square) if self._square else pixels


# -- all of them -------------------------------------------------------------------------------------------------


class Recorded:
    """The data set as a `Recording`."""

    def __init__(self, path: Path, options: Options) -> None:
        roots = _roots(path)
        if len(roots) != 1:
            raise ConvertError(f"{path}: several data sets; give one of them: {', '.join(map(str, roots))}.")
        if options.filter_key:
            raise ConvertError(f"{path}: --filter-key is for robomimic; leave it out.")
        self.format, self.notes = NAME, Notes()
        self._dt_s, self._square, self._task = options.dt_s(NAME), options.image_size, options.task
        self._features = _features(roots[0] / "features.json")
        records = dict(_records(roots[0], self.notes))
        self.ids, self._records = list(records), list(records.values())
        self._sources = self._cameras(path, options.cameras)  # field of the store -> entry of an Example
        self._vectors = {"proprio": self._proprio(path, options.proprio), "action": self._action()}
        self._say_what_is_left_out()
        self._sizes: dict[str, tuple[int, int]] = {}  # of the pictures of a camera
        optional = self._look()
        proprio, action = ([n for t in ts for n in _names(t, self._features[t])] for ts in self._vectors.values())
        self.spec = StoreSpec(
            cameras={
                camera: {"size": list(size), "intrinsics": None, "extrinsics": None}
                for camera, size in self._sizes.items()
                if f"rgb_{camera}" in self._sources
            },
            depth_cameras=[field[6:] for field in self._sources if field.startswith("depth_")],
            proprio={"names": proprio} if proprio else None,
            action=self._action_spec(action, options.action_kind) if action else None,
            optional=optional,
            robot=options.robot,
            dt_s=self._dt_s,
        )
        if not (self._sources or action or proprio):
            raise ConvertError(f"{path}: neither pictures nor a state nor actions: there is nothing to convert.")

    def _cameras(self, path: Path, asked: tuple[str, ...]) -> dict[str, str]:
        """Pictures, and the depth that belongs to them: field of the store -> entry of an Example."""
        images = {n.removeprefix(_OBSERVATION): f for n, f in self._features.items() if f.kind == "image"}
        images = {name: f for name, f in images.items() if _OBSERVATION + name in self._features}
        names = {n.replace("/", "_"): n for n, f in images.items() if f.dtype == "uint8" and "depth" not in n.lower()}
        if wrong := [camera for camera in names if not _CAMERA_NAME.fullmatch(camera)]:
            raise ConvertError(f"{path}: features.json has a camera {wrong[0]!r}; expected letters, digits, _ . and -.")
        if unknown := sorted(set(asked) - set(names)):
            raise ConvertError(f"{path}: there is no camera {unknown[0]!r}; there are {', '.join(names) or 'none'}.")
        cameras = {camera: name for camera, name in names.items() if camera in (asked or names)}
        sources = {f"rgb_{camera}": _OBSERVATION + name for camera, name in cameras.items()}
        for depth, feature in images.items():
            same = [camera for camera, name in cameras.items() if _words(name) == _words(depth)]
            if feature.dtype == "uint16" and len(same) == 1:
                if feature.shape == (*images[cameras[same[0]]].shape[:2], 1):
                    sources[f"depth_{same[0]}"] = _OBSERVATION + depth
                    self.notes.add(f"{depth} is taken as the depth of {same[0]} in millimetres, since it is uint16.")
        return sources

    def _look(self) -> list[str]:
        """Reads episodes until each camera was seen once, and drops those that never were; returns the optional fields.

        That is one episode where metadata has no flags `has_<camera>`, and all of them where a camera is in none.
        """
        unseen, optional = dict(self._sources), list[str]()
        for record in self._records:
            if not unseen:
                break
            try:
                example = _Example(record)
                optional = optional or [
                    field for field, name in self._sources.items() if _flag(name) in example.entries
                ]
                for field, name in list(unseen.items()):
                    if not self._is_absent(example, name):
                        kind, _, camera = field.partition("_")
                        if kind == "rgb":
                            self._sizes[camera] = self._size_of(name, example)
                        del unseen[field]
            except DamagedError:
                continue
        for field, name in unseen.items():
            self.notes.add(f"{name} is left out: no episode that can be read has it.")
            gone = (field, field.replace("rgb_", "depth_", 1))
            self._sources = {other: name for other, name in self._sources.items() if other not in gone}
        return [field for field in optional if field in self._sources]

    def _is_absent(self, example: _Example, name: str) -> bool:
        """Is there no picture, by its flag? A flag that the pictures contradict is not believed, and noted."""
        if not example.says_absent(name):
            return False
        if example.is_blank(name):
            return True
        self.notes.add(f"{name} is kept where its flag says that it is absent and the pictures are not blank.")
        return False

    def _size_of(self, name: str, example: _Example) -> tuple[int, int]:
        """Height and width of a camera's pictures in the store: what is asked for, or said, else those of the first."""
        height, width, _ = self._features[name].shape
        if self._square:
            return self._square, self._square
        if height > 0 and width > 0:
            return height, width
        try:
            first = _open_picture(example.values(name)[0])
        except Exception as error:
            raise example.damaged(f"has {name}, which cannot be decoded ({error})") from error
        return first.height, first.width

    def _proprio(self, path: Path, asked: tuple[str, ...]) -> list[str]:
        known = [name for name, f in self._features.items() if name.startswith(_OBSERVATION) and f.is_numbers]
        if not asked:
            return [name for name in (_OBSERVATION + "state",) if name in known]
        names = [_OBSERVATION + name for name in asked]
        if unknown := sorted(set(names) - set(known)):
            there = ", ".join(name.removeprefix(_OBSERVATION) for name in known) or "none"
            raise ConvertError(
                f"{path}: --proprio {unknown[0].removeprefix(_OBSERVATION)}: no such numbers; there are {there}."
            )
        return names

    def _action(self) -> list[str]:
        parts = [name for name in self._features if name == "steps/action" or name.startswith("steps/action/")]
        return sorted(name for name in parts if self._features[name].is_numbers)

    def _action_spec(self, names: list[str], kind: str) -> ActionSpec:
        kind = action_notes(self.notes, "", kind)
        if names == list(_POSE):
            return ActionSpec(kind, names, self._dt_s, gripper="continuous")
        if kind in ("delta", "relative_to_chunk_start"):
            self.notes.add("which number of an action is the gripper is not said: all are taken as moving along axes.")
        return ActionSpec(kind, names, self._dt_s)

    def _say_what_is_left_out(self) -> None:
        used = {*self._sources.values(), *sum(self._vectors.values(), []), *_INSTRUCTIONS, _REWARD, _SOURCE}
        if others := [name for name in self._features if name not in used and "/has_" not in name]:
            self.notes.add(f"left out: {', '.join(others)}.")
        if any("depth" in name.lower() for name in others):
            self.notes.add("depth is read from uint16 images as large as those of a camera of the same name.")
        if not self._vectors["proprio"]:
            self.notes.add("no proprioception: there is no steps/observation/state, and --proprio names nothing else.")
        if not self._vectors["action"]:
            self.notes.add("no actions: there are no numbers in steps/action.")

    def episode(self, i: int) -> Episode:
        example, arrays = _Example(self._records[i]), dict[str, Any]()
        steps = self._steps(example)
        for field, name in self._sources.items():
            kind, _, camera = field.partition("_")
            if not self._is_absent(example, name):
                arrays[field] = _Pictures(example, name, self._sizes[camera], self._square, kind == "rgb")
            elif field not in self.spec.optional:
                raise example.damaged(f"has a flag that {name} is absent, which the first record has not")
        for field, names in self._vectors.items():
            if names:
                parts = [example.numbers(name, self._features[name], steps) for name in names]
                arrays[field] = np.concatenate(parts, 1)
        arrays["timestamp"] = np.arange(steps) * self._dt_s
        task = next(filter(None, map(example.text, _INSTRUCTIONS)), self._task)
        if not task:
            self.notes.add("some episodes have no instruction and are learned from without words; --task gives one.")
        reward = self._features.get(_REWARD, _Feature("other"))
        rewards = example.numbers(_REWARD, reward, steps) if reward.is_numbers else np.zeros((1, 1))
        success = bool((rewards[-1] > 0).any()) or not rewards.any()
        return Episode(arrays, task, success, source=example.text(_SOURCE), id=self.ids[i])

    def _steps(self, example: _Example) -> int:
        """The number of steps. Raises DamagedError unless all that features.json has is there, once for each."""
        steps: dict[str, float] = {}
        for name, feature in self._features.items():
            if feature.kind == "other" or (feature.optional and name not in example.entries):
                continue
            values = len(example.values(name))
            if name.startswith("steps/") and not (feature.kind == "tensor" and -1 in feature.shape):
                is_flat = feature.kind == "tensor" and feature.encoding == "none"
                steps[name] = values / (prod(feature.shape) if is_flat else 1)
        counts = {*steps.values()}
        if len(counts) != 1 or not (n := counts.pop()) or n % 1:
            raise example.damaged(f"should have the same number of steps in all its entries, and has {steps}")
        known = tuple(f"{name}/" for name, feature in self._features.items() if feature.kind == "other")
        if unknown := sorted(n for n in set(example.entries) - set(self._features) if not n.startswith(known)):
            self.notes.add(f"left out, and not in features.json: {', '.join(unknown)}.")
        return int(n)

    def close(self) -> None:
        """Nothing is open between episodes."""


def recognises(path: Path) -> bool:
    """Are there tfrecords or a features.json in `path`, or up to two folders below it (name/version)?"""
    return bool(_roots(path))


def read(path: Path, options: Options) -> Recorded:
    """Opens it. Raises ConvertError where features.json or dataset_info.json cannot be used or an option is missing."""
    return Recorded(path, options)
