"""One off-screen OpenGL context per process, on whichever library the machine has."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
from typing import Any

BACKENDS = {"egl": ("libEGL.so.1", "libGL.so.1"), "osmesa": ("libOSMesa.so.8",)}  # what each loads
PACKAGES = {"egl": "libegl1 libgl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}  # Debian's names

_context: tuple[str, Any] | None = None


def open_context(wanted: str = "gl") -> str:
    """Makes this process's context, or keeps the one that is there; it is current from then on. Returns its backend.

    Args:   wanted: "egl", "osmesa", or "gl": the one that MUJOCO_GL names, else the first that is installed.
    Raises: RuntimeError if there is none, with the Debian packages that bring one; or if another one is open already.
    """
    global _context
    if _context is not None:
        if wanted not in ("gl", _context[0]):
            raise RuntimeError(
                f"renderer={wanted!r}: this process draws with {_context[0]!r} already, and OpenGL allows one. Use "
                f'renderer="gl", or another process.'
            )
        return _context[0]
    asked = os.environ.get("MUJOCO_GL", "").lower() if wanted == "gl" else wanted
    candidates = [asked] if asked in BACKENDS else [name for name in BACKENDS if _installed(name)]
    if not candidates:
        raise RuntimeError(_advice("No OpenGL library for drawing off-screen was found."))
    backend = candidates[0]
    # MuJoCo's renderer and PyOpenGL both read these when the context is made.
    os.environ["MUJOCO_GL"], os.environ["PYOPENGL_PLATFORM"] = backend, backend
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(1, 1)
        context.make_current()
    except Exception as error:  # each backend has its own
        raise RuntimeError(_advice(f"OpenGL by {backend} could not be opened ({error}).")) from error
    _context = backend, context
    atexit.register(context.free)  # later, when modules are gone, it would complain
    return backend


def _installed(backend: str) -> bool:
    try:
        for library in BACKENDS[backend]:
            ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _advice(what: str) -> str:
    ways = ", or ".join(f"`apt install {packages}` (MUJOCO_GL={name})" for name, packages in PACKAGES.items())
    return f"{what} On Debian or Ubuntu: {ways}; and `pip install padpolicy[gl]`."
