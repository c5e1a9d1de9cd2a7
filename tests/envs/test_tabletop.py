"""The environment as gymnasium and a policy see it."""

import gymnasium
import mujoco
import numpy as np
import padpolicy_envs
import pytest
from gymnasium.utils.env_checker import check_env
from padpolicy_envs import FAMILIES, TASKS, expert_action, rollout_expert, scene, tabletop

ID = "padpolicy/Tabletop-v0"


@pytest.fixture(scope="module")
def blind():
    """Without cameras: physics and words only, fast."""
    env = gymnasium.make(ID, cameras=())
    yield env
    env.close()


@pytest.fixture(scope="module")
def seeing():
    env = gymnasium.make(ID)
    yield env
    env.close()


def same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[key], b[key]) for key in a)


def test_check_env_has_nothing_to_say():
    check_env(gymnasium.make(ID, render_mode="rgb_array", image_size=32).unwrapped)


def test_observation(seeing):
    observation, info = seeing.reset(seed=0)
    assert seeing.observation_space.contains(observation)
    assert observation["rgb_front"].shape == (96, 96, 3) and observation["rgb_front"].dtype == np.uint8
    assert observation["depth_wrist"].shape == (96, 96) and observation["depth_wrist"].dtype == np.uint16
    assert observation["proprio"].shape == (6,) and observation["proprio"].dtype == np.float32
    assert observation["instruction"] in TASKS[info["task"]].paraphrases
    assert info["commanded_pose"].shape == (5,) and info["success"] is False and info["renderer"] == "rays"


def test_constructor_chooses_what_is_seen():
    env = gymnasium.make(ID, cameras=("wrist",), depth=False, image_size=48)
    observation, _ = env.reset(seed=0)
    assert observation.keys() == {"rgb_wrist", "proprio", "instruction"}
    assert observation["rgb_wrist"].shape == (48, 48, 3)
    assert list(env.unwrapped.camera_info()) == ["wrist"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"cameras": ("top",)}, "cameras: expected a selection"), ({"renderer": "vulkan"}, "renderer: expected one of")],
)
def test_constructor_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make(ID, **settings)


def test_same_seed_same_everything(seeing):
    other = gymnasium.make(ID)
    episodes = []
    for env in (seeing, other, seeing):
        seeing.reset(seed=99)  # whatever came before leaves no trace
        first, info = env.reset(seed=5)
        seen = [first]
        for _ in range(4):
            seen.append(env.step(expert_action(env.unwrapped))[0])
        episodes.append((info["task"], seen))
    for task, seen in episodes[1:]:
        assert task == episodes[0][0]
        assert all(same(a, b) for a, b in zip(seen, episodes[0][1], strict=True))


def test_other_seeds_other_scenes(blind):
    scenes = []
    for seed in range(5):
        blind.reset(seed=seed)
        scenes.append(blind.unwrapped.scene)
    assert len({scene.start for scene in scenes}) == 5


def test_without_a_seed_episodes_differ_but_repeat(blind):
    def three():
        blind.reset(seed=3)
        return [blind.reset()[1]["scene_seed"] for _ in range(3)]

    assert three() == three() and len(set(three())) == 3


@pytest.mark.parametrize("name", ["touch_red_cube", "place_blue_cylinder_in_tray", "press_red_button", "open_drawer"])
def test_same_scene_other_instruction(seeing, name):
    """Only the words differ: pictures, state and the list of possible tasks are those of the original."""
    original, _ = seeing.reset(seed=7, options={"task": name, "paraphrase": 0})
    possible = seeing.unwrapped.tasks_in_scene()
    assert name in possible and len(possible) >= 2
    for other in possible[:3]:
        observation, info = seeing.reset(seed=7, options={"task": other, "scene_of": name, "paraphrase": 0})
        assert info["task"] == other and observation.pop("instruction") == TASKS[other].instruction
        assert same(observation, {key: value for key, value in original.items() if key != "instruction"})
        assert seeing.unwrapped.tasks_in_scene() == possible


def test_impossible_instruction_is_refused(blind):
    with pytest.raises(
        ValueError, match="task 'close_drawer': expected one of those possible in the scene of 'open_dr"
    ):
        blind.reset(seed=0, options={"task": "close_drawer", "scene_of": "open_drawer"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "fly"}, "unknown task: expected one of"),
        ({"paraphrase": 17}, r"paraphrase: expected 0 \.\. 4 or 'held_out', got 17"),
        ({"tasks": "open_drawer"}, "reset options: expected task, paraphrase"),
    ],
)
def test_bad_options(blind, options, message):
    with pytest.raises(ValueError, match=message):
        blind.reset(options=options)


def test_paraphrase(blind):
    task = TASKS["open_drawer"]
    for paraphrase, wording in [
        (0, task.instruction),
        (2, task.paraphrases[2]),
        ("held_out", task.held_out_paraphrase),
    ]:
        observation, _ = blind.reset(seed=0, options={"task": task.name, "paraphrase": paraphrase})
        assert observation["instruction"] == wording


def test_scene_seed_fixes_the_scene_whatever_the_seed(blind):
    scenes = []
    for seed in (1, 2):
        blind.reset(seed=seed, options={"task": "open_drawer", "scene_seed": 4})
        scenes.append(blind.unwrapped.scene)
    assert scenes[0] == scenes[1]


def test_training_draws_no_held_out_task(blind):
    blind.reset(seed=0)
    drawn = {blind.reset()[1]["task"] for _ in range(150)}
    assert len(drawn) > 20 and not any(TASKS[name].held_out for name in drawn)


# --- actions ----------------------------------------------------------------------------------------------------------


def test_actions_are_metres_and_radians(blind):
    blind.reset(seed=1, options={"task": "touch_red_cube"})
    before, yaw = blind.unwrapped.tip.copy(), blind.unwrapped.yaw
    for _ in range(3):
        blind.step(np.array([0.01, -0.02, 0.01, 0.1, 0.5], np.float32))
    np.testing.assert_allclose(blind.unwrapped.tip - before, [0.03, -0.06, 0.03], atol=2e-3)
    assert blind.unwrapped.yaw - yaw == pytest.approx(0.3, abs=0.02)
    assert blind.unwrapped.opening == pytest.approx(0.5 * scene.GRIPPER_WIDTH, abs=1e-3)


def test_deltas_do_not_drift(blind):
    blind.reset(seed=1, options={"task": "touch_red_cube"})
    start = blind.unwrapped.commanded_pose
    for sign in (1, -1) * 12:
        blind.step(np.array([0.02 * sign, 0, 0, 0, 1], np.float32))
    np.testing.assert_allclose(blind.unwrapped.commanded_pose, start, atol=1e-6)
    np.testing.assert_allclose(blind.unwrapped.tip, start[:3], atol=2e-3)


def test_action_out_of_range_is_clipped(blind):
    space = blind.action_space
    results = []
    for action in (space.high * 10, space.high):
        blind.reset(seed=2)
        results.append(blind.step(action.astype(np.float32))[0])
    assert same(*results)


@pytest.mark.parametrize("action", [np.full(5, np.nan), np.zeros(4)])
def test_bad_action(blind, action):
    blind.reset(seed=0)
    with pytest.raises(ValueError, match="action: expected 5 finite numbers"):
        blind.unwrapped.step(action)


def test_the_hand_stays_in_the_workspace(blind):
    blind.reset(seed=0)
    for _ in range(20):
        blind.step(np.array([0.04, 0.04, -0.04, 0.3, 0], np.float32))
    low, high = tabletop.WORKSPACE_LOW[:3], tabletop.WORKSPACE_HIGH[:3]
    assert blind.unwrapped.commanded_pose[1:3].tolist() == [high[1], low[2]]  # what it presses against stops it in x
    assert (low - 2e-3 < blind.unwrapped.tip).all() and (blind.unwrapped.tip < high + 2e-3).all()


# --- physics and experts ----------------------------------------------------------------------------------------------


def test_grasps_are_friction_only():
    model = scene.compile_model()
    assert model.neq == 0, "no weld, no other equality constraint"
    assert model.nmocap == 0
    assert not (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH).any()


def test_an_open_hand_lets_go(blind):
    """The object falls as soon as the fingers open: nothing else held it."""
    blind.reset(seed=1, options={"task": "lift_red_cube"})
    done = False
    while not done:
        _, _, done, truncated, _ = blind.step(expert_action(blind.unwrapped))
        assert not truncated
    assert blind.unwrapped.state().objects["red cube"][2] > 0.1
    for _ in range(5):
        blind.unwrapped.step(np.array([0, 0, 0, 0, 1], np.float32))
    assert blind.unwrapped.state().objects["red cube"][2] < 0.03


@pytest.mark.parametrize("family", FAMILIES)
def test_expert(blind, family):
    names = [name for name, task in TASKS.items() if task.family == family]
    for seed in range(8):
        name = names[seed % len(names)]
        blind.reset(seed=seed, options={"task": name})
        assert not blind.unwrapped.succeeded(name), "nothing is done at the start"
        steps = list(rollout_expert(blind, seed, name, noise=0.2 * (seed % 2)))
        assert steps[-1][3]["success"], (name, seed)
        assert len(steps) < TASKS[name].step_limit
        assert all(blind.action_space.contains(label) for _, label, _, _ in steps)


def test_expert_is_a_function_of_the_state(blind):
    blind.reset(seed=0)
    for _ in range(5):
        first = expert_action(blind.unwrapped)
        assert np.array_equal(first, expert_action(blind))
        blind.step(first)


def test_noise_disturbs_the_action_and_never_the_label(blind):
    steps = list(rollout_expert(blind, 0, "place_red_cube_in_tray", noise=0.3))
    assert 0.2 < np.mean([not np.array_equal(label, executed) for _, label, executed, _ in steps]) < 0.8
    assert all(label[4] == executed[4] for _, label, executed, _ in steps)


def test_doing_one_thing_does_another_hardly_ever(blind):
    """Else a policy could ignore the words: the goals of other instructions stay undone."""
    done, asked = 0, 0
    for seed in range(14):
        blind.reset(seed=seed)
        task, others = blind.unwrapped.task.name, blind.unwrapped.tasks_in_scene()
        for _ in rollout_expert(blind, seed, task):
            pass
        others = [name for name in blind.unwrapped.tasks_in_scene() if name != task]
        done += sum(blind.unwrapped.succeeded(name) for name in others)
        asked += len(others)
    assert asked > 50 and done / asked < 0.02


def test_terminated_truncated_and_reward():
    env = gymnasium.make(ID, cameras=(), step_limit=3)
    env.reset(seed=0, options={"task": "place_red_cube_in_tray"})
    ends = [env.step(np.array([0, 0, 0, 0, 1], np.float32))[1:4] for _ in range(3)]
    assert ends == [(0.0, False, False), (0.0, False, False), (0.0, False, True)]

    env = gymnasium.make(ID, cameras=())
    env.reset(seed=0, options={"task": "touch_red_cube"})
    reward, terminated = 0.0, False
    while not terminated:
        assert reward == 0
        _, reward, terminated, truncated, info = env.step(expert_action(env.unwrapped))
        assert not truncated
    assert reward == 1 and info["success"]
    assert env.unwrapped.step(np.array([0, 0, 0.04, 0, 0], np.float32))[4]["success"], "success is latched"


# --- vectors of environments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_vector_environments(kind):
    single = gymnasium.make(ID, image_size=24)
    expected = [single.reset(seed=seed)[0] for seed in (10, 11)]
    envs = gymnasium.make_vec(
        f"padpolicy_envs:{ID}",
        num_envs=2,
        vectorization_mode=kind,
        vector_kwargs={"context": "spawn"} if kind == "async" else None,
        image_size=24,
    )
    try:
        observations, infos = envs.reset(seed=[10, 11])
        for i in range(2):
            assert observations["instruction"][i] == expected[i]["instruction"]
            for key in ("rgb_front", "depth_wrist", "proprio"):
                assert np.array_equal(observations[key][i], expected[i][key])
        kept = observations["instruction"]
        observations, rewards, *_ = envs.step(envs.action_space.sample())
        assert observations["instruction"] == kept and isinstance(kept, tuple)
        again, _ = envs.reset(seed=[12, 13])
        assert [*again["instruction"]] == [single.reset(seed=seed)[0]["instruction"] for seed in (12, 13)]
        assert kept == observations["instruction"], "what was read does not change under the reader's hands"
        assert observations["rgb_wrist"].shape == (2, 24, 24, 3) and rewards.shape == (2,)
        assert len(infos["task"]) == 2
    finally:
        envs.close()


def test_registering_again_does_nothing():
    spec = gymnasium.spec(ID)
    padpolicy_envs.register_envs()
    assert gymnasium.spec(ID) is spec
