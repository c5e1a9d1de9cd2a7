"""A folder of video files as an action-free source.

    folder/any/where.mp4 …                     whatever FFmpeg reads; frame rates, sizes and shapes may differ
    folder/captions.jsonl                      a line per file: {"file": "any/where.mp4", "caption": "push the cube"}
    folder/captions.csv                        the same with a header line: file,caption
                                               (neither, or files they do not name: those have no caption)

The folder is decoded once into a store of our own in the user's cache, keyed by the files' names, sizes and
modification times, and read from there like any other. Frames keep the seconds that the file gives them, and stand as
a player would show them: turned as the file says, with its pixels' aspect ratio. A decoding that was killed goes on
with the file it was at.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from padpolicy.data.layout import LockedError, StoreError, lock, write_attrs
from padpolicy.data.letterbox import letterbox
from padpolicy.data.store import Episode, Store, StoreSpec

CAMERA = "video"  # the camera's name in the cached store
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")
MIN_GAP_S = 0.045  # frames nearer in time than this are dropped: 60 frames/s teach no more than 20
_MOST_PIXELS = 8192 * 8192  # of a frame: a damaged header may claim any size
_REORDERED_S = 1.0  # by so much a frame may seem earlier than the one before: AVI does not say when it is shown
_LAYOUT = 3  # part of the key: raise it when what is cached changes
_LOOK_EVERY_S = 0.5  # at whether another process has finished decoding the same folder: another rank, say


def open_folder(folder: str | Path, image_size: int, progress: Callable[[int, int], None] | None = None) -> Store:
    """The folder's videos as a store, decoded now if they were not before. Files that cannot be read are skipped.

    Args:    image_size: frames are letterboxed to this many pixels.   progress: is called with (files done, files).
    Warns:   naming each file that was skipped, and why.
    Raises:  StoreError if the folder has no video file, or none that can be read, and for captions of no file.
    """
    folder = Path(folder).resolve()
    files = find_videos(folder)
    if not files:
        raise StoreError(f"{folder}: neither a store nor a folder with video files ({', '.join(SUFFIXES)}).")
    captions = check_captions(folder)
    path = cache_folder() / f"{folder.name}-{_key(folder, files, captions, image_size)}.zarr"
    workshop = path.with_name(f"{path.name}.partial")
    while not path.exists():
        workshop.mkdir(parents=True, exist_ok=True)
        try:
            turn = lock(workshop)
        except (LockedError, FileNotFoundError):  # another process is at it, or has finished just now
            time.sleep(_LOOK_EVERY_S)
            continue
        with turn:
            if not path.exists():
                _decode_all(folder, files, captions, image_size, workshop / "store", path, progress)
            shutil.rmtree(workshop, ignore_errors=True)
    store = Store.open(path)
    for name, reason in store.attrs["skipped"].items():
        warnings.warn(f"{folder / name} is left out: {reason}", stacklevel=2)
    return store


def find_videos(folder: Path) -> list[Path]:
    """All video files below a folder, sorted."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def cache_folder() -> Path:
    """Where decoded videos are kept: $PADPOLICY_CACHE, else padpolicy/ in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PADPOLICY_CACHE") or Path(base) / "padpolicy") / "videos"


def check_captions(folder: Path) -> dict[str, str]:
    """`read_captions`, with a StoreError for captions of files that are not there."""
    captions = read_captions(folder)
    if unknown := sorted(set(captions) - {file.relative_to(folder).as_posix() for file in find_videos(folder)}):
        raise StoreError(
            f"{folder}: captions name {unknown[0]!r}, which is not there ({len(unknown)} such). Correct them."
        )
    return captions


def read_captions(folder: Path) -> dict[str, str]:
    """File (relative, with /) -> caption, from captions.jsonl or captions.csv; {} without either."""
    captions: dict[str, str] = {}
    source = next((folder / name for name in ("captions.jsonl", "captions.csv") if (folder / name).is_file()), None)
    if source is None:
        return captions
    try:
        with open(source, encoding="utf-8-sig", newline="") as stream:
            lines: list = [line for line in stream if line.strip()]
        entries = [json.loads(line) for line in lines] if source.suffix == ".jsonl" else list(csv.DictReader(lines))
        for entry in entries:
            if caption := (entry["caption"] or "").strip():
                captions[Path(entry["file"]).as_posix()] = caption
    except Exception as error:  # not UTF-8, not JSON, not what is expected: each raises its own
        expected = '{"file": …, "caption": …} a line' if source.suffix == ".jsonl" else "the header file,caption"
        raise StoreError(f"{source}: cannot be read ({type(error).__name__}: {error}); expected {expected}.") from error
    return captions


def decode(file: Path, image_size: int, chosen: np.ndarray | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of a video: seconds since its first one, and (image_size, image_size, 3) uint8.

    Args:    chosen: (n,) increasing numbers of the frames that are wanted, as `frame_times` counts them. None: all but
             those less than MIN_GAP_S behind the one before.
    Raises:  ValueError if it cannot be read or has no frame; before that, the frames in front of the damage.
    """
    wanted = None if chosen is None else iter(chosen.tolist())
    following, last_s = next(wanted, -1) if wanted else 0, -MIN_GAP_S
    with _undecodable():
        for i, (time_s, frame, aspect) in enumerate(_frames(file)):
            if i != following if wanted else time_s - last_s < MIN_GAP_S:
                continue
            following, last_s = next(wanted, -1) if wanted else 0, time_s
            shrink = image_size / max(frame.width * aspect, frame.height)
            width, height = max(round(frame.width * aspect * shrink), 1), max(round(frame.height * shrink), 1)
            rgb = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
            yield time_s, letterbox(np.rot90(rgb, round(frame.rotation / 90)), image_size)


def frame_times(file: Path) -> np.ndarray:
    """(n,) float64: seconds since its first frame of each frame of a video, increasing. Decodes it, a frame at a time.

    Raises:  ValueError as `decode`.
    """
    with _undecodable():
        return np.fromiter((time_s for time_s, _, _ in _frames(file)), np.float64)


def _frames(file: Path) -> Iterator[tuple[float, Any, float]]:
    """Each frame of a video: seconds since the first one, the frame, and the aspect ratio of its pixels.

    Frames that are not later than the one before are left out. Where the decoder says that it conceals damage, it is an
    error: a made-up picture is worse than none.
    """
    import av

    i, first_s, last_s, end_s = 0, None, -np.inf, 0.0
    with av.open(str(file)) as container:
        if not container.streams.video:
            raise ValueError("it has no pictures")
        stream = container.streams.video[0]
        stream.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(_MOST_PIXELS), "err_detect": "explode"}
        rate = float(stream.average_rate or 0) or 25.0
        aspect = float(stream.sample_aspect_ratio or 1)
        for packet in container.demux():
            if packet.pts is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            for frame in packet.decode() if packet.stream is stream else ():
                time_s = i / rate if frame.time is None else float(frame.time)
                if frame.is_corrupt or time_s < last_s - _REORDERED_S:
                    raise ValueError(f"frame {i} is damaged" if frame.is_corrupt else f"time goes back at frame {i}")
                first_s = time_s if first_s is None else first_s
                if time_s > last_s:
                    yield time_s - first_s, frame, aspect
                i, last_s = i + 1, max(last_s, time_s)
        said_s = ((container.duration or 0) + (container.start_time or 0)) / 1e6
        if container.format.name == "avi":  # its duration is guessed from what is there, where it lacks its end
            said_s = max(said_s, stream.frames / rate)
    if first_s is None:
        raise ValueError("it has no frames")
    if said_s - end_s > 0.5 + said_s / 100 + 2 * end_s / i:  # a last frame may not say how long it is shown
        raise ValueError(f"it ends after {end_s:.1f} of {said_s:.1f} s: it was cut short")


@contextmanager
def _undecodable() -> Iterator[None]:
    """Whatever FFmpeg makes of damaged bytes, as one ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"it cannot be decoded ({error})") from error


def _key(folder: Path, files: list[Path], captions: dict[str, str], image_size: int) -> str:
    listed = [(file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([_LAYOUT, image_size, MIN_GAP_S, listed, sorted(captions.items())])
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _decode_all(
    folder: Path,
    files: list[Path],
    captions: dict[str, str],
    image_size: int,
    building: Path,
    path: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decodes the files that the store `building` has not yet, and renames it to `path` when it is complete."""
    skipped: dict[str, str] = {}
    with _open_or_create(building, image_size) as store:
        done = {str(name) for name in store.meta["episode_id"]}
        for i, file in enumerate(files):
            name = file.relative_to(folder).as_posix()
            if name not in done:
                try:
                    times_s, frames = zip(*decode(file, image_size), strict=True)
                except ValueError as error:
                    skipped[name] = str(error)
                else:
                    arrays = {f"rgb_{CAMERA}": np.stack(frames), "timestamp": np.array(times_s)}
                    store.append(Episode(arrays, task=captions.get(name, ""), source=str(folder), id=name))
            if progress:
                progress(i + 1, len(files))
        write_attrs(building, store.attrs | {"skipped": skipped})
        n_read = store.n_episodes
    if n_read == 0:
        shutil.rmtree(building.parent)
        name, reason = next(iter(skipped.items()))
        raise StoreError(f"{folder}: none of {len(files)} video files can be read; {name}: {reason}.")
    os.rename(building, path)


def _open_or_create(building: Path, image_size: int) -> Store:
    try:
        return Store.open(building, "a")
    except StoreError:  # there is none, or one that something worse than a kill has damaged
        shutil.rmtree(building, ignore_errors=True)
    size = {"size": [image_size, image_size], "intrinsics": None, "extrinsics": None}
    return Store.create(building, StoreSpec(cameras={CAMERA: size}))
