"""Video files by integer frame numbers: read forward, written from pictures, joined without encoding them anew."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Encoder -> the name that a file's codec then has, and its options. The first that this FFmpeg offers is taken; both
# make every second frame a key frame, so that a single one can be had quickly.
_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "libsvtav1": ("av1", {"g": 2, "crf": 30, "preset": 12}),
    "libx264": ("h264", {"g": 2, "crf": 23, "preset": "veryfast"}),
}
PIXELS = "yuv420p"


class Video:
    """A video file that is decoded forward, and seeks only where it has to.

    Frame i is the i-th to be shown, counted by the file's own index: no seconds are compared, so a clock that drifts
    in a long file shifts nothing. A frame that the decoder drops or repeats is an error.
    """

    def __init__(self, path: Path) -> None:
        """Raises: whatever FFmpeg raises, or ValueError, for a file that is damaged."""
        self._container = av.open(str(path))
        try:
            self._stream = self._container.streams.video[0]
            self._stream.thread_count = 1
            self._stream.codec_context.options = {"err_detect": "explode"}
            self._index()
        except Exception:
            self._container.close()
            raise
        self._at = -1  # the frame that the decoder will give next; -1: it has not started
        self._decoder: Iterator[Any] = iter(())
        self._reformatter = VideoReformatter()  # one for all frames: making it takes longer than a small frame

    def _index(self) -> None:
        """Reads all packets once, decoding none."""
        shown: list[int] = []
        checks: list[int] = []
        keys: list[tuple[int, int]] = []
        for packet in self._container.demux(self._stream):
            if packet.dts is None and packet.size == 0:  # the end
                continue
            if packet.is_corrupt or packet.pts is None:
                raise ValueError(f"its packet {len(shown)} is cut off or has no time")
            if not packet.is_discard:
                if packet.is_keyframe:
                    keys.append((packet.pts, packet.dts))
                shown.append(packet.pts)
                checks.append(zlib.crc32(packet))
        order = np.argsort(np.array(shown, np.int64), kind="stable")
        self._pts = np.array(shown, np.int64)[order]
        self._checks = np.array(checks, "<u4")[order]
        if not keys or (np.diff(self._pts) <= 0).any():
            raise ValueError("its index is damaged: no key frame, or two frames of the same time")
        self._keys = np.searchsorted(self._pts, sorted(pts for pts, _ in keys))
        self._key_dts = [dts for _, dts in sorted(keys)]

    def __len__(self) -> int:
        """How many frames it has."""
        return len(self._pts)

    def crc32(self, first: int, stop: int) -> int:
        """A checksum over the encoded frames `first` to `stop`; copying them into another mp4 leaves it as it is."""
        return zlib.crc32(self._checks[first:stop].tobytes())

    def frames(self, first: int, stop: int) -> Iterator[av.VideoFrame]:
        """Frames `first` to `stop`.

        Raises:  as when it is opened.
        """
        key = max(int(np.searchsorted(self._keys, first, side="right")) - 1, 0)
        if not self._keys[key] <= self._at <= first:
            self._at = -1  # until the first frame is here
            self._container.seek(self._key_dts[key], stream=self._stream)
            self._decoder = self._container.decode(self._stream)
            at = int(self._keys[key])
        else:
            at = self._at
        while at < stop:
            frame = next(self._decoder, None)
            if frame is not None and self._at < 0 and frame.pts is not None and frame.pts < self._pts[at]:
                continue  # the seek ended at an earlier key frame
            if frame is None or frame.pts != self._pts[at] or frame.is_corrupt:
                self._at = -1
                raise ValueError(f"frame {at} of {len(self)} cannot be decoded")
            at += 1
            self._at = at
            if at > first:
                yield frame

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """A frame as (H, W, 3) uint8."""
        return self._reformatter.reformat(frame, format="rgb24").to_ndarray()

    def close(self) -> None:
        self._container.close()


def encoder() -> tuple[str, str, dict[str, Any]]:
    """The encoder of colours here: its name, the codec's, its options."""
    for name, (codec, options) in _ENCODERS.items():
        if name in av.codecs_available:
            return name, codec, options
    raise ValueError(f"this FFmpeg has none of the video encoders {', '.join(_ENCODERS)}.")


def encode(path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: Fraction) -> None:
    """Writes an mp4 of pictures (H, W, 3) uint8.

    Args:    size: (H, W).   fps: frames a second.
    """
    os.environ.setdefault("SVT_LOG", "1")  # errors only: it talks on stderr
    name, _, options = encoder()
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(name, rate=fps, options={key: str(value) for key, value in options.items()})
        stream.height, stream.width = size
        stream.pix_fmt = PIXELS
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def join(parts: Sequence[tuple[Path, int]], path: Path, fps: Fraction) -> None:
    """Writes the videos one after another into an mp4, their frames 1 / fps apart, as they are encoded.

    Args:    parts: what `encode` wrote with the same size and fps, and how many frames it has.
    """
    done = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as joined:
        stream = None
        for part, n in parts:
            with av.open(str(part)) as container:
                source = container.streams.video[0]
                if stream is None:
                    stream = joined.add_stream_from_template(source, opaque=True)  # no encoder is opened
                    stream.time_base = source.time_base
                shift = round(done / (fps * source.time_base))
                for packet in container.demux(source):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        joined.mux(packet)
            done += n
