"""Two ways to draw the scene: rays on the CPU (no GL library needed, the default) and MuJoCo's GL renderer.

Both give `rgb` uint8 [H, W, 3] and `depth` uint16 [H, W] in millimetres along the optical axis, 0 = nothing there.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from . import gl
from .scene import HIDDEN, TABLE

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
    """Casts one ray per pixel with `mj_multiRay` and one from the light to every point seen.

    Most of a picture is bare table, whose distance is plain arithmetic. A ray is cast only if it passes through one of
    the balls that cover all other geoms: the picture stays the same and takes half the time.
    """

    name = "rays"

    def __init__(self, model: mujoco.MjModel, size: int, samples: int = 1) -> None:
        """Prepare pictures of size x size pixels, each the mean of samples x samples rays."""
        self.model, self.size, self.samples = model, size, samples
        self._cameras: dict[str, NDArray] = {}
        self._table = model.geom("table").id
        self._cast_model = _flattened(model) if _HAS_NORMALS else model  # an older MuJoCo sees nothing in the flat one
        self._cast_data = mujoco.MjData(self._cast_model)
        self._groups = np.ones(6, np.uint8)
        self._groups[[TABLE, HIDDEN]] = 0
        self._ball_geom, self._ball_centre, self._ball_radius = _bounding_balls(model)

    # Vectors are stored [3, N], one row a component, in single precision (0.1 micrometres at arm's length): numpy is
    # several times faster on long rows than on triples. Only the casts themselves are in double precision.

    def _camera_rays(self, camera: str) -> NDArray:
        """Unit rays [3, N] in the camera's frame (x right, y up, looking along -z), pixels row by row."""
        if camera not in self._cameras:
            n = self.size * self.samples
            half = np.tan(np.deg2rad(self.model.camera(camera).fovy[0]) / 2)
            grid = ((np.arange(n) + 0.5) / n * 2 - 1) * half
            x, y = np.meshgrid(grid, -grid)
            rays = np.stack([x, y, -np.ones_like(x)]).reshape(3, -1)
            self._cameras[camera] = (rays / np.linalg.norm(rays, axis=0)).astype(np.float32)
        return self._cameras[camera]

    def _cast(self, origin: NDArray, rays: NDArray, normals: bool) -> tuple[NDArray[np.int32], NDArray, NDArray]:
        """What rays [3, N] from one point hit: geom [N] (-1 = nothing), distance [N], normal [3, N] (0 if unasked)."""
        rays = rays.T.astype(np.float64, order="C")
        n = len(rays)
        hit, dist = np.empty(n, np.int32), np.empty(n)
        normal = np.zeros((n, 3))
        args = [self._cast_model, self._cast_data, origin, rays.reshape(-1), self._groups, True, -1, hit, dist]
        if _HAS_NORMALS:
            args.append(normal.reshape(-1) if normals else None)
        mujoco.mj_multiRay(*args, n, FAR)
        if normals and not _HAS_NORMALS:
            points = origin + rays * dist[:, None]
            normal = surface_normals(self._cast_model, self._cast_data, np.maximum(hit, 0), points)
        return hit, dist, normal.T

    def __call__(self, data: mujoco.MjData, camera: str, light: Light) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Draw one camera: rgb uint8 [H, W, 3] and depth uint16 [H, W] in millimetres."""
        local = self._camera_rays(camera)
        view = data.camera(camera)
        origin, single = view.xpos, np.float32
        rays = view.xmat.reshape(3, 3).astype(single) @ local
        self._follow(data)

        # The table first, everywhere; then whatever stands on it or hangs over it.
        dist = single(origin[2]) / np.maximum(-rays[2], single(1e-9))
        hit = np.where(dist < FAR, self._table, -1)
        normal = np.zeros_like(rays)
        normal[2] = 1
        busy = self._through_balls(origin, rays)
        geom, gap, outward = self._cast(origin, rays[:, busy], normals=True)
        nearer = (geom >= 0) & (gap < dist[busy])
        index = busy[nearer]
        hit[index], dist[index], normal[:, index] = geom[nearer], gap[nearer], outward[:, nearer]
        seen = hit >= 0
        dist[~seen] = 0

        rays *= dist
        rays += (origin - light.position).astype(single)[:, None]
        reach = np.sqrt((rays * rays).sum(0))
        beam = np.divide(rays, reach, out=rays)  # from the light to what is seen
        facing = np.maximum(-(normal * beam).sum(0), 0)
        busy = self._through_balls(light.position, beam)
        busy = busy[facing[busy] > 0]
        blocker, gap, _ = self._cast(light.position, beam[:, busy], normals=False)
        facing[busy] *= (gap > reach[busy] - _SHADOW_SLACK) | (blocker < 0)

        # Faces that look down get less of the ambient light: a cheap stand-in for the sky and for bounces.
        shade = single(light.ambient) * (single(0.15) * normal[2] + single(0.85)) + single(light.diffuse) * facing
        shade[~seen] = 1
        palette = np.vstack([self.model.geom_rgba[:, :3], np.full((1, 3), 0.75)]) * 255  # -1: the background
        rgb = np.take(palette.T.astype(single), hit, axis=1)
        rgb *= shade
        rgb += single(0.5)
        rgb = np.minimum(rgb, 255, out=rgb)
        depth = local[2] * dist * single(-1000) + single(0.5) * seen

        n, s = self.size, self.samples
        if s > 1:
            rgb = rgb.reshape(3, n, s, n, s).mean((2, 4))
            depth = depth.reshape(n, s, n, s)[:, 0, :, 0]
        picture = np.ascontiguousarray(rgb.astype(np.uint8).reshape(3, n, n).transpose(1, 2, 0))
        return picture, depth.reshape(n, n).astype(np.uint16)

    def _follow(self, data: mujoco.MjData) -> None:
        """Take over where everything is, and find the balls around all that is drawn but the table."""
        if self._cast_model is self.model:
            self._cast_data = data
        else:
            self._cast_model.geom_group[:] = self.model.geom_group
            self._cast_data.geom_xpos[:], self._cast_data.geom_xmat[:] = data.geom_xpos, data.geom_xmat
        drawn = self.model.geom_group[self._ball_geom] != HIDDEN
        geom = self._ball_geom[drawn]
        turn = data.geom_xmat.reshape(-1, 3, 3)[geom]
        self._centre = data.geom_xpos[geom] + (turn * self._ball_centre[drawn, None]).sum(2)  # [M, 3]
        self._radius = self._ball_radius[drawn]  # [M]

    def _through_balls(self, origin: NDArray, rays: NDArray) -> NDArray[np.intp]:
        """Indices of those of the unit rays [3, N] from one point that pass through a ball."""
        towards = self._centre - origin
        far = np.sqrt((towards * towards).sum(1))
        # A ray meets a ball if the cosine between it and the way to the centre is large enough; single precision will
        # do, with a little slack. From inside a ball every ray meets it.
        limit = np.where(far > self._radius, np.sqrt(np.maximum(1 - (self._radius / far) ** 2, 0)) - 1e-4, -2)
        cosine = (towards / far[:, None]).astype(np.float32) @ rays
        return np.flatnonzero((cosine > limit.astype(np.float32)[:, None]).any(0))

    def close(self) -> None:
        """Nothing to give back."""


def _flattened(model: mujoco.MjModel) -> mujoco.MjModel:
    """A model of the same geoms in the same order, all in the world body: rays then skip MuJoCo's tests per body."""
    spec = mujoco.MjSpec()
    for g in range(model.ngeom):
        spec.worldbody.add_geom(type=mujoco.mjtGeom(model.geom_type[g]), size=model.geom_size[g])
    flat = spec.compile()
    flat.bvh_aabb[:, 3:] = 1e3  # geoms will be put where they are at present: never rule the whole body out
    return flat


def _bounding_balls(model: mujoco.MjModel) -> tuple[NDArray[np.intp], NDArray, NDArray]:
    """Balls that cover every geom but the table: geom [M], centre in its frame [M, 3], radius [M].

    Long geoms get several small balls along their longest axis, since one big ball would cover half the picture.
    """
    geoms, centres, radii = [], [], []
    for g in range(model.ngeom):
        size, kind = model.geom_size[g], model.geom_type[g]
        if kind == mujoco.mjtGeom.mjGEOM_PLANE:
            continue
        half = size.copy()
        if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
            half = np.array([size[0], size[0], size[1] + size[0]])
        elif kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
            half = np.array([size[0], size[0], size[1]])
        axis = int(np.argmax(half))
        across = np.sqrt((half**2).sum() - half[axis] ** 2)
        count = int(np.ceil(half[axis] / across / 2))
        for i in range(count):
            centre = np.zeros(3)
            centre[axis] = half[axis] * ((2 * i + 1) / count - 1)
            geoms.append(g)
            centres.append(centre)
            radii.append(np.hypot(across, half[axis] / count))
    return np.array(geoms), np.array(centres), np.array(radii)


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
    """OpenGL: fast on a GPU (software GL is not), nearly the same pixels, and it needs a library."""

    name = "gl"

    def __init__(self, model: mujoco.MjModel, size: int, samples: int = 1) -> None:
        """Open a canvas for pictures of size x size pixels. Raises RuntimeError where there is no OpenGL."""
        self.model, self.size = model, size
        option = mujoco.MjvOption()
        option.geomgroup[:] = 1
        option.geomgroup[HIDDEN] = 0
        option.sitegroup[:] = 0
        try:
            self._canvas = gl.Canvas(model, size, options=option)
        except RuntimeError as error:
            raise RuntimeError(f'{error} renderer="rays" needs none of this.') from error

    def __call__(self, data: mujoco.MjData, camera: str, light: Light) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Draw one camera: rgb uint8 [H, W, 3] and depth uint16 [H, W] in millimetres."""
        towards = np.array([0.45, 0.0, 0.0]) - light.position  # the middle of the table
        data.light_xpos[0], data.light_xdir[0] = light.position, towards / np.linalg.norm(towards)
        # The even light is the headlight's: that of the lamp would be missing from its shadows.
        self.model.light_diffuse[0], self.model.vis.headlight.ambient[:] = light.diffuse, light.ambient
        rgb, metres = self._canvas.draw(data, self.model.camera(camera).id, self.size)
        depth = np.where(metres < FAR, metres * 1000 + 0.5, 0).astype(np.uint16)
        return np.ascontiguousarray(rgb[::-1]), np.ascontiguousarray(depth[::-1])

    def close(self) -> None:
        """Give the canvas back."""
        self._canvas.close()


RENDERERS = {"rays": RayRenderer, "gl": GLRenderer}
