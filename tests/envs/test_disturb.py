"""Disturbances do what they say, and nothing else."""

import gymnasium
import numpy as np
import padpolicy_envs.disturb as disturb
import pytest
from padpolicy_envs import expert_action

ID = "padpolicy/DisturbedTabletop-v0"
AT = 4


@pytest.fixture(scope="module")
def env():
    env = gymnasium.make(ID, disable_env_checker=True, cameras=("front",), image_size=24)
    yield env
    env.close()


def run(env, kind, task="lift_red_cube", seed=3, steps=AT + 12, disturb_seed=0):
    """Observations, infos and tips of an episode in which the expert acts."""
    wish = {"kind": kind, "at": AT, "seed": disturb_seed} if kind else {}
    observation, info = env.reset(seed=seed, options={"task": task, "disturb": wish})
    seen, infos, tips, objects = [observation], [info], [env.unwrapped.tip.copy()], [env.unwrapped.state().objects]
    for _ in range(steps):
        observation, _, terminated, _, info = env.step(expert_action(env.unwrapped))
        seen.append(observation)
        infos.append(info)
        tips.append(env.unwrapped.tip.copy())
        objects.append(env.unwrapped.state().objects)
        if terminated:
            break
    return seen, infos, np.array(tips), objects


def test_without_a_wish_it_is_the_tabletop(env):
    plain = gymnasium.make("padpolicy/Tabletop-v0", cameras=("front",), image_size=24)
    first, info = plain.reset(seed=3, options={"task": "lift_red_cube"})
    seen, infos, _, _ = run(env, "", steps=5)
    for step in range(6):
        np.testing.assert_array_equal(first["rgb_front"], seen[step]["rgb_front"])
        assert infos[step]["commanded_pose"] == info["commanded_pose"].tolist()
        assert infos[step]["disturbed_at"] == -1
        first, _, _, _, info = plain.step(expert_action(plain.unwrapped))


@pytest.mark.parametrize("seed", range(4))
def test_moved(env, seed):
    _, infos, _, objects = run(env, "moved", seed=seed, steps=AT + 1)
    assert [info["disturbed_at"] for info in infos] == [-1] * (AT + 1) + [AT]
    for name in objects[0]:
        far = np.linalg.norm(objects[AT + 1][name] - objects[AT][name])
        if name == "red cube":
            assert disturb.MOVE[0] - 0.002 < far < disturb.MOVE[1] + 0.002
        else:
            assert far < 0.002


def test_swapped(env):
    _, infos, _, objects = run(env, "swapped", steps=AT + 1)
    assert infos[-1]["disturbed_at"] == AT
    before, after = objects[AT], objects[AT + 1]
    changed = [name for name in before if np.linalg.norm(before[name] - after[name]) > 0.01]
    assert len(changed) == 2 and "red cube" in changed
    a, b = changed
    np.testing.assert_allclose(after[a], before[b], atol=0.002)
    np.testing.assert_allclose(after[b], before[a], atol=0.002)


def test_covered(env):
    seen, _, _, _ = run(env, "covered", steps=AT + 3)
    assert seen[AT]["rgb_front"].std() > 0 and seen[AT]["depth_front"].any()
    for observation in seen[AT + 1 :]:
        assert len(np.unique(observation["rgb_front"].reshape(-1, 3), axis=0)) == 1
        assert not observation["depth_front"].any()


def test_blocked_for_a_second_and_only_then(env):
    _, infos, tips, _ = run(env, "blocked", steps=AT + disturb.BLOCK_STEPS + 4)
    moved = np.linalg.norm(np.diff(tips, axis=0), axis=1)
    assert moved[:AT].min() > 0.005
    assert moved[AT : AT + disturb.BLOCK_STEPS].max() < 0.002
    assert moved[AT + disturb.BLOCK_STEPS :].max() > 0.005
    clean = run(env, "", steps=AT + 2)[2]
    assert np.linalg.norm(np.diff(clean, axis=0), axis=1).min() > 0.005  # a reset lets it go


def test_what_is_held_is_left_alone(env):
    env.reset(seed=3, options={"task": "lift_red_cube", "disturb": {"kind": "moved", "at": 10}})
    for _ in range(45):
        near = np.linalg.norm(env.unwrapped.tip - env.unwrapped.state().objects["red cube"]) < 0.08
        before = env.unwrapped.state().objects["red cube"]
        _, _, terminated, _, info = env.step(expert_action(env.unwrapped))
        if near:
            assert np.linalg.norm(env.unwrapped.state().objects["red cube"] - before) < 0.05
        if terminated:
            break


@pytest.mark.parametrize("wish", [{"kind": "earthquake"}, {"kind": "moved", "at": -1}, {"kind": "moved", "when": 3}])
def test_unknown_wishes(env, wish):
    with pytest.raises(ValueError, match="disturb: expected kind"):
        env.reset(seed=0, options={"disturb": wish})
