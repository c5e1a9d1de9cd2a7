"""Pictures and depth against geometry."""

import gymnasium
import mujoco
import numpy as np
import pytest
from padpolicy_envs import expert_action, gl, render
from padpolicy_envs.tasks import COLOURS

ID = "padpolicy/Tabletop-v0"


@pytest.fixture(scope="module")
def env():
    env = gymnasium.make(ID, render_mode="rgb_array").unwrapped
    yield env
    env.close()


def points_of(env, depth, camera):
    """World coordinates [H, W, 3] of a depth picture, by the camera's own published numbers."""
    info = env.camera_info()[camera]
    k, v, u = np.array(info["intrinsics"]), *np.indices(info["size"])
    z = depth / 1000
    local = np.stack([(u + 0.5 - k[0, 2]) / k[0, 0] * z, (v + 0.5 - k[1, 2]) / k[1, 1] * z, z], -1)
    pose = info["extrinsics"]
    if pose is None:
        pose = np.eye(4)
        pose[:3, :3] = env.data.camera(camera).xmat.reshape(3, 3) * [1, -1, -1]
        pose[:3, 3] = env.data.camera(camera).xpos
    pose = np.array(pose)
    return local @ pose[:3, :3].T + pose[:3, 3]


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_depth_agrees_with_geometry(env, camera):
    """Most of a picture is table, at z = 0; what is drawn in an object's colour lies on that object."""
    observation, _ = env.reset(seed=4, options={"task": "touch_red_cube"})
    points = points_of(env, observation[f"depth_{camera}"], camera)
    assert (np.abs(points[..., 2]) < 0.002).mean() > 0.3
    assert points[..., 2].min() > -0.002
    rgb = observation[f"rgb_{camera}"].astype(float)
    red = (rgb[..., 0] > 100) & (rgb[..., 1] < 40) & (rgb[..., 2] < 40)
    assert red.sum() > 10
    away = np.abs(points[red] - env.state().objects["red cube"])
    assert np.median(away.max(-1)) < 0.036 and away.max() < 0.036  # half a diagonal of the cube


def test_nothing_in_range_has_depth_zero(env):
    env.reset(seed=0)
    renderer = render.RayRenderer(env.model, 24)
    away = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])  # looks along -x, level: table below, sky above
    env.data.cam_xmat[env.model.camera("front").id] = away.reshape(-1)
    env.data.cam_xpos[env.model.camera("front").id] = [3, 3, 0.6]
    _, depth = renderer(env.data, "front", env._light)
    assert (depth[:8] == 0).all() and (depth < 1000 * render.FAR).all() and (depth[-1] > 0).all()


def cast_everything(env, camera, size):
    """The naive picture: every ray against the whole scene, with MuJoCo's single-ray function."""
    view = env.data.camera(camera)
    rays = view.xmat.reshape(3, 3) @ render.RayRenderer(env.model, size)._camera_rays(camera)
    groups, geom = np.array([1, 1, 1, 1, 1, 0], np.uint8), np.empty(1, np.int32)
    seen = [(mujoco.mj_ray(env.model, env.data, view.xpos, ray, groups, True, -1, geom), geom[0]) for ray in rays.T]
    return rays, np.array([d for d, _ in seen]), np.array([g for _, g in seen])


@pytest.mark.parametrize("camera", ["front", "wrist"])
@pytest.mark.parametrize("task", ["place_red_cube_in_tray", "open_drawer", "press_red_button"])
def test_culling_changes_nothing(env, camera, task):
    env.reset(seed=3, options={"task": task})
    for _ in range(6):
        env.step(expert_action(env))
    size = 48
    rgb, depth = render.RayRenderer(env.model, size)(env.data, camera, env._light)
    rays, dist, _ = cast_everything(env, camera, size)
    forward = -env.data.camera(camera).xmat.reshape(3, 3)[:, 2]
    expected = np.round(forward @ rays * dist * 1000).reshape(size, size)
    assert (np.abs(depth.astype(int) - expected) <= 1).mean() > 0.998
    assert rgb.std() > 10


def test_own_normals_agree_with_mujoco(env):
    """Old MuJoCo gives no normals; ours are the same to rounding, away from edges."""
    if not render._HAS_NORMALS:
        pytest.skip("this MuJoCo gives no normals to compare with")
    env.reset(seed=3, options={"task": "open_drawer"})
    renderer = render.RayRenderer(env.model, 48)
    view = env.data.camera("front")
    rays = view.xmat.reshape(3, 3) @ renderer._camera_rays("front")
    renderer._follow(env.data)
    hit, dist, normal = renderer._cast(view.xpos, rays, normals=True)
    met = hit >= 0
    points = view.xpos + rays.T[met] * dist[met, None]
    ours = render.surface_normals(env.model, env.data, hit[met], points)
    assert np.isclose(ours, normal.T[met], atol=1e-4).all(1).mean() > 0.995
    assert set(env.model.geom_type[np.unique(hit[met])]) >= {3, 5, 6}  # capsules, cylinders, boxes


def test_old_mujoco_draws_the_same(env, monkeypatch):
    """Without the `normal` argument the shading comes from our own normals."""
    env.reset(seed=3, options={"task": "press_red_button"})
    rgb, depth = render.RayRenderer(env.model, 48)(env.data, "front", env._light)
    real = mujoco.mj_multiRay

    def without_normal(m, d, pnt, vec, groups, static, exclude, geom, dist, n, cutoff):
        extra = (None,) if had_normals else ()
        return real(m, d, pnt, vec, groups, static, exclude, geom, dist, *extra, n, cutoff)

    had_normals = render._HAS_NORMALS
    monkeypatch.setattr(render, "_HAS_NORMALS", False)
    monkeypatch.setattr(mujoco, "mj_multiRay", without_normal)
    rgb_old, depth_old = render.RayRenderer(env.model, 48)(env.data, "front", env._light)
    assert np.array_equal(depth, depth_old)
    assert (np.abs(rgb.astype(int) - rgb_old).max(-1) <= 1).mean() > 0.99


def test_colours_tell_things_apart():
    colours = np.array(list(COLOURS.values()))
    gaps = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 9 * np.eye(len(colours))
    assert gaps.min() > 0.3


def test_every_object_is_seen_from_the_front(env):
    """At reset each object and button shows at least 12 pixels of its colour, else words could not point at it."""
    for seed in range(6):
        observation, _ = env.reset(seed=seed)
        renderer_view = env.data.camera("front")
        rays = renderer_view.xmat.reshape(3, 3) @ env._renderer._camera_rays("front")
        env._renderer._follow(env.data)
        hit, _, _ = env._renderer._cast(renderer_view.xpos, rays, normals=False)
        shown = np.bincount(hit[hit >= 0], minlength=env.model.ngeom)
        for slot, placed in enumerate(env.scene.objects):
            assert shown[env._slot_geom[slot][placed.name.split()[1]]] >= 12, (seed, placed.name)
        for slot, placed in enumerate(env.scene.buttons):
            assert shown[env.model.geom(f"button{slot}_cap").id] >= 12, (seed, placed.name)
        assert observation["rgb_front"].max() > 150


def test_render_is_larger_and_smoother(env):
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8


def test_gl_says_what_is_missing(env, monkeypatch):
    monkeypatch.setattr(gl, "_context", None)
    monkeypatch.setattr(gl, "BACKENDS", {"egl": ("libnothere.so.1",), "osmesa": ("libnothere.so.8",)})
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(RuntimeError, match=r"apt install libosmesa6.*renderer=\"rays\" needs none of this"):
        gymnasium.make(ID, renderer="gl").reset(seed=0)


def test_gl_agrees_with_rays(env):
    try:
        gl.open_context()
    except RuntimeError as error:
        pytest.skip(str(error))
    other = gymnasium.make(ID, renderer="gl")
    for seed in range(3):
        rays, drawn = env.reset(seed=seed)[0], other.reset(seed=seed)[0]
        for camera in env.cameras:
            gap = np.abs(rays[f"depth_{camera}"].astype(int) - drawn[f"depth_{camera}"])
            assert (gap <= 3).mean() > 0.99
            assert np.abs(rays[f"rgb_{camera}"].astype(int) - drawn[f"rgb_{camera}"]).mean() < 10
    other.close()
