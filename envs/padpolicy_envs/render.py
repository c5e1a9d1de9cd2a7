"""Two ways to draw the scene: rays on the CPU (no GL library needed, the default) and MuJoCo's GL renderer.

Both give `rgb` uint8 [H, W, 3] and `depth` uint16 [H, W] in millimetres along the optical axis, 0 = nothing there.
"""

from __future__ import annotations

import inspect

import mujoco
import numpy as np
from numpy.typing import NDArray

from .scene import DRAWN

FAR = 4.0  # metres; beyond it nothing is drawn
_SHADOW_SLACK = 0.004  # metres: keeps a surface from shading itself
# mujoco >= 3.5 asks for a `normal` array; older ones have no such argument.
_HAS_NORMALS = "normal:" in (mujoco.mj_multiRay.__doc__ or "")


class Light:
    """One point light and an even ambient light, set anew for each scene."""

    def __init__(self) -> None:
        self.position = np.array([0.6, 0.0, 1.4])
        self.diffuse = 0.75
        self.ambient = 0.40


class RayRenderer:
    """Casts one ray per pixel with `mj_multiRay` and one from the light to every point seen."""

    name = "rays"

    def __init__(self, model: mujoco.MjModel, size: int, samples: int = 1) -> None:
        """Prepare pictures of size x size pixels, each the mean of samples x samples rays."""
        self.model, self.size, self.samples = model, size, samples
        self._rays: dict[str, NDArray[np.float64]] = {}
        n = (size * samples) ** 2
        self._hit, self._shadow_hit = np.empty(n, np.int32), np.empty(n, np.int32)
        self._dist, self._shadow_dist = np.empty(n), np.empty(n)
        self._normal = np.empty((n, 3))
        self._groups = np.zeros(6, np.uint8)
        self._groups[DRAWN] = 1

    def _camera_rays(self, camera: str) -> NDArray[np.float64]:
        """Unit directions [N, 3] in the camera's frame (x right, y up, looking along -z), row by row."""
        if camera not in self._rays:
            n = self.size * self.samples
            half = np.tan(np.deg2rad(self.model.camera(camera).fovy[0]) / 2)
            grid = ((np.arange(n) + 0.5) / n * 2 - 1) * half
            x, y = np.meshgrid(grid, -grid)
            rays = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3)
            self._rays[camera] = rays / np.linalg.norm(rays, axis=1, keepdims=True)
        return self._rays[camera]

    def _cast(self, data, origin, directions, hit, dist, normal, cutoff) -> None:
        n = len(directions)
        args = [self.model, data, origin, directions.reshape(-1), self._groups, True, -1, hit[:n], dist[:n]]
        if _HAS_NORMALS:
            args.append(None if normal is None else normal[:n].reshape(-1))
        mujoco.mj_multiRay(*args, n, cutoff)

    def __call__(
        self, data: mujoco.MjData, camera: str, light: Light
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Draw one camera: rgb uint8 [H, W, 3] and depth uint16 [H, W] in millimetres."""
        local = self._camera_rays(camera)
        view = data.camera(camera)
        origin, rays = view.xpos, local @ view.xmat.reshape(3, 3).T
        self._cast(data, origin, rays, self._hit, self._dist, self._normal, FAR)
        seen = self._hit >= 0
        dist = np.where(seen, self._dist, FAR)
        points = origin + rays * dist[:, None]
        if _HAS_NORMALS:
            normal = self._normal
        else:
            normal = surface_normals(self.model, data, np.maximum(self._hit, 0), points)

        to_light = light.position - points
        reach = np.sqrt(np.einsum("ij,ij->i", to_light, to_light))
        to_light /= reach[:, None]
        facing = np.maximum(np.einsum("ij,ij->i", normal, to_light), 0)
        self._cast(data, light.position, -to_light, self._shadow_hit, self._shadow_dist, None, 2 * FAR)
        lit = (self._shadow_dist > reach - _SHADOW_SLACK) | (self._shadow_hit < 0)

        # Faces that look down get less of the ambient light: a cheap stand-in for the sky and for bounces.
        shade = light.ambient * (0.85 + 0.15 * normal[:, 2]) + light.diffuse * facing * lit
        albedo = self.model.geom_rgba[self._hit, :3]
        rgb = np.where(seen[:, None], albedo * shade[:, None], 0.75)
        rgb = np.minimum(rgb * 255 + 0.5, 255)
        depth = np.where(seen, -local[:, 2] * dist * 1000 + 0.5, 0)

        n, s = self.size, self.samples
        if s > 1:
            rgb = rgb.reshape(n, s, n, s, 3).mean((1, 3))
            depth = depth.reshape(n, s, n, s)[:, 0, :, 0]
        return rgb.reshape(n, n, 3).astype(np.uint8), depth.reshape(n, n).astype(np.uint16)

    def close(self) -> None:
        """Nothing to give back."""


def surface_normals(
    model: mujoco.MjModel, data: mujoco.MjData, geom: NDArray[np.int32], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Outward unit normals [N, 3] at surface points [N, 3] of primitive geoms [N], for MuJoCo without them."""
    rotation, size, kind = data.geom_xmat.reshape(-1, 3, 3)[geom], model.geom_size[geom], model.geom_type[geom]
    local = np.einsum("nji,nj->ni", rotation, points - data.geom_xpos[geom])
    normal = np.zeros_like(local)
    normal[:, 2] = 1  # planes
    rows = np.arange(len(local))

    box = kind == mujoco.mjtGeom.mjGEOM_BOX
    axis = np.argmax(np.abs(local) - size, axis=1)
    normal[box] = 0
    normal[rows[box], axis[box]] = np.sign(local[rows[box], axis[box]])

    round_ = (kind == mujoco.mjtGeom.mjGEOM_CAPSULE) | (kind == mujoco.mjtGeom.mjGEOM_SPHERE)
    straight = np.where(kind == mujoco.mjtGeom.mjGEOM_CAPSULE, size[:, 1], 0)
    core = np.zeros_like(local)
    core[:, 2] = np.clip(local[:, 2], -straight, straight)
    normal[round_] = (local - core)[round_]

    tube = kind == mujoco.mjtGeom.mjGEOM_CYLINDER
    side = np.hypot(local[:, 0], local[:, 1]) - size[:, 0] > np.abs(local[:, 2]) - size[:, 1]
    normal[tube & side] = (local * [1, 1, 0])[tube & side]
    normal[tube & ~side] = (np.sign(local) * [0, 0, 1])[tube & ~side]

    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    return np.einsum("nij,nj->ni", rotation, normal)


class GLRenderer:
    """MuJoCo's own renderer: several times faster, other pixels, and it needs a GL library."""

    name = "gl"

    def __init__(self, model: mujoco.MjModel, size: int, samples: int = 1) -> None:
        """Open a GL context for pictures of size x size pixels."""
        self.model = model
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except Exception as error:  # mujoco raises whatever its GL backend raised
            raise RuntimeError(
                'renderer="gl" needs an OpenGL library and none could be opened '
                f"({type(error).__name__}: {error}). On Debian or Ubuntu: `apt install libosmesa6` and set "
                "MUJOCO_GL=osmesa, or `apt install libegl1 libgl1 libgl1-mesa-dri` and set MUJOCO_GL=egl; both before "
                'mujoco is imported. renderer="rays" needs none of this.'
            ) from error
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[DRAWN] = 1
        self._option.sitegroup[:] = 0

    def __call__(
        self, data: mujoco.MjData, camera: str, light: Light
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Draw one camera: rgb uint8 [H, W, 3] and depth uint16 [H, W] in millimetres."""
        self.model.light_pos[0] = light.position
        self.model.light_diffuse[0], self.model.light_ambient[0] = light.diffuse, light.ambient
        self._renderer.update_scene(data, camera=camera, scene_option=self._option)
        rgb = self._renderer.render().copy()
        self._renderer.enable_depth_rendering()
        metres = self._renderer.render()
        self._renderer.disable_depth_rendering()
        return rgb, np.where(metres < FAR, metres * 1000 + 0.5, 0).astype(np.uint16)

    def close(self) -> None:
        """Give the GL context back."""
        self._renderer.close()


RENDERERS = {"rays": RayRenderer, "gl": GLRenderer}
