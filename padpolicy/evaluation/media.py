"""What a browser shows: templates of pages, PNG as data URIs, H.264 files."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jinja2


def templates(folder: Path) -> jinja2.Environment:
    """The templates in a folder, and page.css here, which all pages include. Filter `uri`: an image as `data_uri`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["uri"] = data_uri
    return environment


def png(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a PNG file. Source: PNG specification, third edition, sections 5 and 11."""
    height, width, _ = image.shape

    def block(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)  # filter type 0 per row
    body = block(b"IHDR", header) + block(b"IDAT", zlib.compress(rows.tobytes(), 9)) + block(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def data_uri(image: np.ndarray) -> str:
    """An image (H, W, 3) uint8 as something an <img> takes for `src`."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image (H, W, 3) uint8 at another size, smoothly."""
    import av

    if image.shape[:2] == (height, width):
        return image
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(width=width, height=height, interpolation="LANCZOS").to_ndarray(format="rgb24")


def write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Frames (H, W, 3) uint8 of one size as H.264 in yuv420p, for any browser. Odd sizes lose a row or column.

    Raises:  ValueError if there are no frames.
    """
    import av

    if not len(frames):
        raise ValueError(f"{path}: a video needs at least one frame.")
    height, width = (side // 2 * 2 for side in frames[0].shape[:2])
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "21", "preset": "medium", "tune": "animation"}
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
