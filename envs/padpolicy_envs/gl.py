"""Drawing off-screen with OpenGL, by whichever library the machine has: one context per process, a canvas per model."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import subprocess
import sys
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

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
    if len(candidates) > 1:  # a process can try one only
        candidates = [name for name in candidates if _works(name)]
    if not candidates:
        raise RuntimeError(_advice("No OpenGL library for drawing off-screen was found."))
    backend = candidates[0]
    # MuJoCo's renderer and PyOpenGL both read these when the context is made; children open the same one.
    os.environ["MUJOCO_GL"], os.environ["PYOPENGL_PLATFORM"] = backend, backend
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(1, 1)
        context.make_current()
    except Exception as error:  # each backend has its own
        raise RuntimeError(_advice(f"OpenGL by {backend} could not be opened ({error}).")) from error
    _context = backend, context
    atexit.register(context.free)  # later, when modules are gone, it would complain
    return backend


class Canvas:
    """Draws one model. Set `model.vis.quality` before.

    Args:    size: of the largest picture, pixels a side.   backend: see `open_context`.
             options: what is drawn; None: MuJoCo's default.   flags: of the scene, {mujoco.mjtRndFlag.…: bool}.
    Raises:  RuntimeError: see `open_context`.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        size: int,
        backend: str = "gl",
        options: mujoco.MjvOption | None = None,
        flags: dict[int, bool] | None = None,
    ) -> None:
        self.backend, self.model = open_context(backend), model
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # floats are finest where things are far
        self._scene, self._options = mujoco.MjvScene(model, 1000), options or mujoco.MjvOption()
        for flag, on in (flags or {}).items():
            self._scene.flags[flag] = on
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def draw(self, data: mujoco.MjData, camera: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Colours uint8 [size, size, 3] and metres along the optical axis float32 [size, size], inf where nothing is.

        Both come out of one pass, the lowest row first, as OpenGL has it.
        """
        model, rectangle = self.model, mujoco.MjrRect(0, 0, size, size)
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        rgb, z = np.empty((size, size, 3), np.uint8), np.empty((size, size), np.float32)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)  # another may have drawn since
        mujoco.mjr_render(rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(rgb, z, rectangle, self._context)
        near, far = model.vis.map.znear * model.stat.extent, model.vis.map.zfar * model.stat.extent
        metres = near * far / (near + z * (far - near))
        return rgb, np.where(metres < 0.999 * far, metres, np.inf).astype(np.float32)

    def close(self) -> None:
        """Give its pictures and meshes back; the context stays."""
        self._context.free()


def _installed(backend: str) -> bool:
    try:
        for library in BACKENDS[backend]:
            ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _works(backend: str) -> bool:
    code = f"from padpolicy_envs import gl; gl.open_context({backend!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def _advice(what: str) -> str:
    ways = ", or ".join(f"`apt install {packages}` (MUJOCO_GL={name})" for name, packages in PACKAGES.items())
    return f"{what} On Debian or Ubuntu: {ways}."
