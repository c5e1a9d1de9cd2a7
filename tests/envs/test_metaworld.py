"""MetaWorld as gymnasium and a policy see it. Needs the extra `metaworld` and an OpenGL library."""

from collections import Counter

import gymnasium
import numpy as np
import pytest
from padpolicy_envs.metaworld_tasks import TASKS, get_task


def test_fifty_tasks_in_four_tiers_and_no_two_wordings_alike():
    assert Counter(task.family for task in TASKS.values()) == {"easy": 28, "medium": 11, "hard": 6, "very hard": 5}
    every = [words for task in TASKS.values() for words in (*task.paraphrases, task.held_out_paraphrase)]
    assert len(every) == len(set(every)) == 50 * 5
    known = {word for task in TASKS.values() for words in task.paraphrases for word in words.split()}
    assert not {word for task in TASKS.values() for word in task.held_out_paraphrase.split()} - known


def test_names():
    assert get_task("door-open-v3") is get_task("door-open") is TASKS["door-open"]
    with pytest.raises(ValueError, match="got 'dor-open'; did you mean door-open"):
        get_task("dor-open")


pytest.importorskip("metaworld", reason="the extra metaworld is not installed")
mujoco = pytest.importorskip("mujoco")
from padpolicy_envs import gl, metaworld  # noqa: E402

try:
    gl.open_context()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)
ID = "padpolicy/MetaWorld-v0"


@pytest.fixture(scope="module")
def env():
    env = gymnasium.make(ID, image_size=48, render_mode="rgb_array")
    yield env
    env.close()


def play(env, seed, task, steps=6):
    """What is seen and earned in the first steps of random motion."""
    observation, info = env.reset(seed=seed, options={"task": task})
    seen = [observation, info["commanded_pose"]]
    for action in np.random.default_rng(seed).uniform(-1, 1, (steps, 4)).astype(np.float32):
        observation, reward, *_, info = env.step(action)
        seen += [observation, reward, info["commanded_pose"]]
    return seen


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else np.array_equal(a, b)


def test_observation_is_what_the_space_says_and_holds_no_goal(env):
    observation, info = env.reset(seed=0, options={"task": "reach"})
    assert env.observation_space.contains(observation)
    assert set(observation) == {
        *("rgb_corner4", "depth_corner4", "rgb_gripperPOV", "depth_gripperPOV"),
        *("proprio", "instruction"),
    }
    assert observation["proprio"].shape == (4,) and observation["instruction"] in TASKS["reach"].paraphrases
    assert (info["family"], info["renderer"], info["success"]) == ("easy", "gl", False)
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    assert env.render().shape == (256, 256, 3)


def test_check_env_has_nothing_to_say():
    from gymnasium.utils.env_checker import check_env

    env = gymnasium.make(ID, image_size=16, cameras=("corner4",), task="reach", render_mode="rgb_array").unwrapped
    check_env(env)
    env.close()


def test_an_episode_is_a_function_of_its_seed_whatever_was_played_before(env):
    first = play(env, 3, "drawer-open")
    play(env, 4, "drawer-open")
    play(env, 3, "window-open")
    assert same(first, play(env, 3, "drawer-open"))
    other = gymnasium.make(ID, image_size=48)
    assert same(first, play(other, 3, "drawer-open"))
    other.close()
    assert not same(first[:1], play(env, 5, "drawer-open")[:1])


def test_fixed_goals_are_the_same_under_every_seed():
    env = gymnasium.make(ID, cameras=(), goals="fixed")
    for task in ("reach", "peg-insert-side", "window-open"):
        states = {tuple(env.reset(seed=seed, options={"task": task}) and env.unwrapped.state) for seed in range(4)}
        assert len(states) == 1, "objects, too"
    env.close()


@pytest.mark.parametrize("task", ["reach", "push", "pick-place", "door-open", "window-close"])
def test_the_marker_is_drawn_at_the_goal_from_the_first_picture_on(env, task):
    for seed in range(2):  # the second reset is the one that showed a stale marker
        env.reset(seed=seed, options={"task": task})
        simulator = env.unwrapped.simulator.env
        for site, position in simulator._target_site_config:
            np.testing.assert_allclose(env.unwrapped.data.site(site).xpos, position, atol=1e-3)


@pytest.mark.parametrize("camera", ["corner4", "gripperPOV"])
def test_depth_and_camera_agree_with_rays_through_the_scene(env, camera):
    observation, _ = env.reset(seed=1, options={"task": "drawer-open"})
    info, data = env.unwrapped.camera_info()[camera], env.unwrapped.data
    turned = -1 if camera.startswith("corner") else 1
    pose = data.camera(camera).xmat.reshape(3, 3) * [turned, -turned, -1]
    if info["extrinsics"] is not None:
        np.testing.assert_allclose(np.array(info["extrinsics"])[:3, :3], pose)
    model, (focal, _, centre) = env.unwrapped.simulator.env.model, info["intrinsics"][0]
    drawn, found = np.array([1, 1, 1, 0, 0, 0], np.uint8), []
    for v in range(2, 48, 4):
        for u in range(2, 48, 4):
            ray = np.array([(u + 0.5 - centre) / focal, (v + 0.5 - centre) / focal, 1.0])
            away = mujoco.mj_ray(
                model, data, data.camera(camera).xpos, pose @ ray, drawn, 1, -1, np.zeros(1, np.int32)
            )  # in lengths of `ray`, so in metres along the axis; -1 where it meets nothing
            found.append(abs(max(away, 0) * 1000 - observation[f"depth_{camera}"][v, u]) < 0.01 * abs(away) * 1000 + 1)
    assert np.mean(found) > 0.93  # rays do not see markers, and at an edge they may pass by


def test_what_is_left_out_of_drawing_is_out_of_sight(env, monkeypatch):
    seen, _ = env.reset(seed=2, options={"task": "hammer"})
    monkeypatch.setattr(metaworld._Simulator, "_in_sight", lambda self, camera: np.ones(len(self._groups), bool))
    everything, _ = env.reset(seed=2, options={"task": "hammer"})
    assert same(seen, everything)


def test_paper_quality_is_another_renderer():
    env = gymnasium.make(ID, quality="paper", cameras=("corner4",), image_size=48, task="reach")
    shaded, info = env.reset(seed=0)
    env.close()
    plain = gymnasium.make(ID, cameras=("corner4",), image_size=48, task="reach")
    assert not np.array_equal(shaded["rgb_corner4"], plain.reset(seed=0)[0]["rgb_corner4"])
    assert info["renderer"] == "gl paper"
    plain.close()


def test_recorded_expert_actions_succeed_again_and_success_stays():
    env = gymnasium.make(ID, cameras=())
    for task in ("coffee-button", "plate-slide-back-side", "drawer-close"):
        actions = [executed for _, _, executed, _ in metaworld.rollout_expert(env, 11, task)]
        env.reset(seed=11, options={"task": task})
        ends = [env.step(action) for action in actions]
        assert [terminated for _, _, terminated, _, _ in ends] == [False] * (len(actions) - 1) + [True]
        for _ in range(60):  # MetaWorld itself takes it back
            *_, info = env.step(np.array([0, 0, 1, -1], np.float32))
        assert info["success"]
    env.close()


def test_disturbed_execution_keeps_clean_labels():
    env = gymnasium.make(ID, cameras=())
    steps = list(metaworld.rollout_expert(env, 5, "reach", noise=0.3))
    env.close()
    assert any(not np.array_equal(label, executed) for _, label, executed, _ in steps)
    assert all(label[3] == executed[3] for _, label, executed, _ in steps)
    assert all(np.abs(executed).max() <= 1 and np.abs(label).max() <= 1 for _, label, executed, _ in steps)


def test_the_limit_is_the_environments_own():
    env = gymnasium.make(ID, cameras=(), task="reach", step_limit=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(4, np.float32))[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]
    env.close()


def test_the_script_drives_to_a_pose_and_says_when_it_is_there():
    env = gymnasium.make(ID, cameras=(), task="reach").unwrapped
    env.reset(seed=0)
    waypoint = np.append(env.state[:3] + [0.1, -0.05, 0.03], 1.0)
    for _ in range(50):
        action, there = env.towards(waypoint)
        assert env.action_space.contains(action) and action[3] == 1
        if there:
            break
        env.step(action)
    assert there and np.linalg.norm(env.state[:3] - waypoint[:3]) < 0.01
    env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cameras": ("front",)}, "cameras: expected one of 'corner4'"),
        ({"task": "open-the-door"}, "task: expected one of MetaWorld's 50, got 'open-the-door'"),
        ({"step_limit": 501}, "step_limit: expected 1 to 500"),
        ({"quality": "good"}, "quality: expected one of 'fast', 'paper'"),
    ],
)
def test_constructor_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make(ID, **settings)


@pytest.mark.parametrize("action", [[0, 0, 0], [0, 0, 0, np.nan]])
def test_bad_actions_are_errors(env, action):
    env.reset(seed=0, options={"task": "reach"})
    with pytest.raises(ValueError, match="expected 4 finite numbers"):
        env.unwrapped.step(np.array(action, np.float32))


def test_without_opengl_the_error_names_the_packages(monkeypatch):
    monkeypatch.setattr(gl, "_context", None)
    monkeypatch.setattr(gl, "BACKENDS", {"egl": ("libnothere.so.1",), "osmesa": ("libnothere.so.8",)})
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(RuntimeError, match="apt install libegl1 libgl1 libgl1-mesa-dri.*apt install libosmesa6"):
        gl.open_context()


def test_one_process_has_one_context():
    have = gl.open_context()
    other = "osmesa" if have == "egl" else "egl"
    with pytest.raises(RuntimeError, match="allows one"):
        gl.open_context(other)
