"""`padpolicy convert`: any recording in, ours or another format out. One file per format; see recording.py."""

from padpolicy.data.convert.recording import ConvertError, DamagedError, Options
from padpolicy.data.convert.run import FORMATS, WRITES, convert, open_recording

__all__ = ["FORMATS", "WRITES", "ConvertError", "DamagedError", "Options", "convert", "open_recording"]
