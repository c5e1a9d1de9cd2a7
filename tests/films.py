"""Video files for tests."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(path: Path, times_s, picture: Callable[[int], np.ndarray]) -> None:
    """A video whose frame i, `picture(i)` (H, W, 3) uint8, is shown at `times_s[i]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = picture(0).shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = round(time_s * 1000), stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
