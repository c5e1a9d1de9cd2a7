"""A folder of video files, or one file, as a recording without actions; padpolicy/data/video.py decodes them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from padpolicy.data import video
from padpolicy.data.convert.recording import ConvertError, DamagedError, Notes, Options
from padpolicy.data.layout import StoreError
from padpolicy.data.store import Episode, StoreSpec

NAME = "folder of video files"
CAMERA = "front"
IMAGE_SIZE = 256  # pixels, unless options say


def recognises(path: Path) -> bool:
    """Is `path` a video file, or a folder with one anywhere below it?"""
    if path.is_file():
        return path.suffix.lower() in video.SUFFIXES
    return path.is_dir() and bool(video.find_videos(path))


class _Frames:
    """The chosen frames of a video (n, size, size, 3) uint8, decoded when they are asked for; in order, each once."""

    dtype = np.dtype(np.uint8)

    def __init__(self, file: Path, chosen: np.ndarray, size: int) -> None:
        self._file, self._chosen, self._size = file, chosen, size
        self.shape = (len(chosen), size, size, 3)
        self._at, self._frames = 0, video.decode(file, size, chosen)  # the next of them, and what decodes it

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, behind, _ = rows.indices(len(self._chosen))
        if first < self._at:
            self._at, self._frames = 0, video.decode(self._file, self._size, self._chosen)
        out = np.empty((max(behind - first, 0), *self.shape[1:]), np.uint8)
        try:
            while self._at < behind:
                _, rgb = next(self._frames)
                if self._at >= first:
                    out[self._at - first] = rgb
                self._at += 1
        except (ValueError, StopIteration) as error:
            reason = str(error) or "it has fewer frames than a moment ago"
            raise DamagedError(f"{self._file}: {reason}. Copy it again, or remove it.") from error
        return out


class Videos:
    """The video files as a `Recording`, an episode each."""

    def __init__(self, path: Path, options: Options) -> None:
        for name in ("action_kind", "proprio", "filter_key"):
            if getattr(options, name):
                raise ConvertError(
                    f"{path}: videos have nothing that --{name.replace('_', '-')} could be about; leave it out."
                )
        if set(options.cameras) - {CAMERA}:
            raise ConvertError(
                f"{path}: videos have one camera, {CAMERA!r}; --cameras asks for {', '.join(options.cameras)}."
            )
        folder = path if path.is_dir() else path.parent
        try:
            self._files = video.find_videos(path) if path.is_dir() else [path]
            captions = video.check_captions(path) if path.is_dir() else video.read_captions(path.parent)
        except (StoreError, OSError) as error:
            raise ConvertError(str(error)) from error
        self._size = options.image_size or IMAGE_SIZE
        self._fps = 1 / options.dt_s(NAME) if options.fps else 0.0
        self.format, self.notes = NAME, Notes()
        camera = {"size": [self._size, self._size], "intrinsics": None, "extrinsics": None}
        self.spec = StoreSpec(cameras={CAMERA: camera}, robot=options.robot)
        self.ids = [file.relative_to(folder).as_posix() for file in self._files]
        self._tasks = {
            name: captions.get(name) or options.task.replace("{name}", words(file)).strip()
            for name, file in zip(self.ids, self._files, strict=True)
        }
        if without := [name for name, task in self._tasks.items() if not task]:
            self.notes.add(
                f"{len(without)} of {len(self.ids)} videos have no caption and are learned from without words, "
                f"{without[0]} for one. Say what is done in them in captions.jsonl, or with --task."
            )

    def episode(self, i: int) -> Episode:
        file, name = self._files[i], self.ids[i]
        try:
            times_s = video.frame_times(file)
        except ValueError as error:
            raise DamagedError(f"{file}: {error}. Copy it again, or remove it.") from error
        chosen = nearest_to_grid(times_s, self._fps) if self._fps else np.arange(len(times_s))
        arrays = {f"rgb_{CAMERA}": _Frames(file, chosen, self._size), "timestamp": times_s[chosen]}
        return Episode(arrays, task=self._tasks[name], source=name, id=name)

    def close(self) -> None:
        """Nothing is open between frames."""


def read(path: Path, options: Options) -> Videos:
    """Opens it. Raises ConvertError for options that videos have no use for, and for captions that cannot be read."""
    return Videos(path, options)


def words(file: Path) -> str:
    """A file's name as words: without its suffix and the number at its end, underscores as spaces."""
    return re.sub(r"[\s-]*\d*$", "", file.stem.replace("_", " ")).strip()


def nearest_to_grid(times_s: np.ndarray, fps: float) -> np.ndarray:
    """Numbers of the frames (n,) int64, increasing, that are nearest to 0, 1/fps, 2/fps … seconds, each taken once.

    Where a video is slower than fps all its frames stay and none is repeated.

    Args: times_s: (m,) increasing, of each frame.
    """
    steps = times_s * fps
    nearest = np.rint(steps)
    by_distance = np.lexsort((np.abs(steps - nearest), nearest))
    return np.sort(by_distance[np.unique(nearest[by_distance], return_index=True)[1]])
