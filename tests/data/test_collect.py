"""Collecting: right contents, the same store whoever records it, and a kill loses nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from padpolicy.config import CollectConfig, EnvConfig
from padpolicy.data.collect import FAILURES, FIRST_SCENE, _jobs, collect, failures_path, scene_seed
from padpolicy.data.store import Store, StoreError
from padpolicy.data.validate import validate

pytest.importorskip("padpolicy_envs")
TASKS = ["touch_red_cube", "press_red_button"]


def make_cfg(out, **changes) -> CollectConfig:
    env = EnvConfig(id="padpolicy/Tabletop-v0", robot="tabletop", cameras=["front"])
    values = {"out": str(out), "env": env, "tasks": TASKS, "episodes_per_task": 2, "workers": 1, "depth": False}
    return CollectConfig(**values | changes)


def assert_same_stores(a, b) -> None:
    one, other = Store.open(a), Store.open(b)
    assert one.attrs == other.attrs
    for i in range(one.n_episodes):
        x, y = one.episode(i), other.episode(i)
        assert (x.task, x.success, x.seed, x.source, x.id) == (y.task, y.success, y.seed, y.source, y.id)
        for name in x.arrays:
            np.testing.assert_array_equal(x.arrays[name], y.arrays[name])


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    return collect(make_cfg(tmp_path_factory.mktemp("collect") / "s.zarr"))


def test_a_store_says_all_there_is_to_know(collected):
    store = Store.open(collected)
    assert validate(collected) == []
    assert [str(name) for name in store.meta["episode_id"]] == [f"{t}/{j:06d}" for t in TASKS for j in range(2)]
    assert store.meta["episode_success"].all() and (store.meta["episode_seed"] >= FIRST_SCENE).all()
    assert (store.robot, store.renderer) == ("tabletop", "rays")
    assert store.cameras["front"]["size"] == [96, 96] and np.array(store.cameras["front"]["extrinsics"]).shape == (4, 4)
    task = store.task_of(2)
    assert task["name"] == "press_red_button" and len(task["paraphrases"]) >= 4 and not task["held_out"]
    assert task["held_out_paraphrase"] not in task["paraphrases"]
    spec = store.action_spec
    assert spec.kind == "delta" and set(store.read("action", 0, store.n_rows)[:, spec.gripper_part].ravel()) <= {0, 1}


def test_labels_are_the_experts_own_also_where_execution_is_disturbed(tmp_path):
    import gymnasium
    from padpolicy_envs import rollout_expert

    path = collect(make_cfg(tmp_path / "n.zarr", noise=1.0, episodes_per_task=1, tasks=TASKS[:1]))
    episode = Store.open(path).episode(0)
    assert episode.source == "scripted expert, disturbed"
    env = gymnasium.make("padpolicy_envs:padpolicy/Tabletop-v0", cameras=("front",), depth=False)
    steps = list(rollout_expert(env, episode.seed, episode.task, 0.3))
    env.close()
    np.testing.assert_array_equal(episode.arrays["action"], [label for _, label, _, _ in steps])
    np.testing.assert_array_equal(episode.arrays["executed"], [executed for _, _, executed, _ in steps])
    assert any(not np.array_equal(label, executed) for _, label, executed, _ in steps)
    np.testing.assert_array_equal(episode.arrays["rgb_front"], [seen["rgb_front"] for seen, *_ in steps])


def test_parallel_workers_write_the_same_store(collected, tmp_path):
    seen = []
    path = collect(make_cfg(tmp_path / "p.zarr", workers=2), progress=lambda done, total, _: seen.append((done, total)))
    assert_same_stores(collected, path)
    assert seen == [(i, 4) for i in range(5)]


def test_asking_for_more_extends_and_for_the_same_does_nothing(collected, tmp_path):
    path = collect(make_cfg(tmp_path / "m.zarr", episodes_per_task=1))
    assert Store.open(path).n_episodes == 2
    collect(make_cfg(path))
    collect(make_cfg(path))
    more, straight = Store.open(path), Store.open(collected)
    ids = [list(map(str, store.meta["episode_id"])) for store in (more, straight)]
    assert ids[0] == [f"{t}/{j:06d}" for j in range(2) for t in TASKS] and sorted(ids[0]) == sorted(ids[1])
    for i, name in enumerate(ids[0]):
        here, there = more.episode(i), straight.episode(ids[1].index(name))
        assert all(np.array_equal(here.arrays[field], there.arrays[field]) for field in here.arrays)


def test_tasks_come_in_blocks_and_each_episode_once():
    jobs = [(job.task, job.number) for job in _jobs(["a", "b"], 12)]
    assert jobs[:11] == [("a", j) for j in range(10)] + [("b", 0)] and jobs[20:] == [
        *(("a", j) for j in (10, 11)),
        *(("b", j) for j in (10, 11)),
    ]
    assert sorted(jobs) == [(t, j) for t in "ab" for j in range(12)]


def test_failures_are_kept_apart_and_once(tmp_path):
    """With too few steps to stack anything, every scene fails."""
    tasks = ["touch_red_cube", "stack_red_cube_on_blue_cube"]
    cfg = make_cfg(tmp_path / "f.zarr", tasks=tasks, episodes_per_task=1, noise=0.0)
    cfg.keep_failures, cfg.env.max_steps = True, 15
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 episodes are missing.*stack_red_cube_on_blue_cube/000000"):
            collect(cfg)
        store, failures = Store.open(cfg.out), Store.open(failures_path(cfg.out))
        assert store.meta["episode_success"].all() and not failures.meta["episode_success"].any()
        ids = list(map(str, failures.meta["episode_id"]))
        assert list(map(str, store.meta["episode_id"])) == ["touch_red_cube/000000"]
        assert len(set(ids)) == len(ids) and [i for i in ids if i.startswith("stack")] == [
            f"stack_red_cube_on_blue_cube/000000/{attempt}" for attempt in range(FAILURES)
        ]
        assert validate(failures_path(cfg.out)) == [] and failures.fields == store.fields
    shutil.rmtree(cfg.out)
    with pytest.raises(StoreError, match="holds what failed beside a store that is gone"):
        collect(cfg)


def test_action_free_stores(tmp_path):
    path = collect(make_cfg(tmp_path / "v.zarr", actions=False, depth=True, episodes_per_task=1, tasks=TASKS[:1]))
    store = Store.open(path)
    assert sorted(store.fields) == ["depth_front", "rgb_front"] and store.robot == "" and store.renderer == "rays"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seed": 1}, StoreError, "was collected with seed=0, now 1"),
        ({"noise": 0.1}, StoreError, "noise=0.5, now 0.1"),
        ({"tasks": ["touch_red_cub"]}, ValueError, "unknown task 'touch_red_cub'; did you mean touch_red_cube"),
        ({"env": EnvConfig(id="CartPole-v1")}, ValueError, "no scripted expert is known for environment 'CartPole-v1'"),
    ],
)
def test_other_settings_and_unknown_names_are_errors(collected, changes, error, message):
    with pytest.raises(error, match=message):
        collect(make_cfg(collected, **changes))


def test_held_out_tasks_are_left_out_unless_asked_for():
    from padpolicy_envs import TASKS as ALL

    from padpolicy.data.collect import ENVS, _tasks

    tasks = _tasks(make_cfg("x", tasks=[]), ENVS["padpolicy/Tabletop-v0"])
    assert tasks == [name for name, task in ALL.items() if not task.held_out] and len(tasks) < len(ALL)


def test_scenes_are_a_function_of_seed_task_and_number():
    seeds = {scene_seed(s, t, n, a) for s in range(3) for t in TASKS for n in range(20) for a in range(3)}
    assert len(seeds) == 3 * 2 * 20 * 3
    assert scene_seed(7, "touch_red_cube", 3, 0) == scene_seed(7, "touch_red_cube", 3, 0)


SCRIPT = """
import sys
from padpolicy.config import CollectConfig, EnvConfig
from padpolicy.data.collect import collect
if __name__ == "__main__":
    env = EnvConfig(id="padpolicy/Tabletop-v0", robot="tabletop", cameras=["front"])
    tasks = ["touch_red_cube", "press_red_button"]
    cfg = CollectConfig(out=sys.argv[1], env=env, tasks=tasks, episodes_per_task=4, workers=2, depth=False)
    collect(cfg, lambda done, *_: print(done, flush=True))
"""


def test_kill_9_and_the_same_command_again_give_the_store_of_an_undisturbed_run(tmp_path):
    script, path = tmp_path / "script.py", tmp_path / "k.zarr"
    script.write_text(SCRIPT)
    child = subprocess.Popen([sys.executable, str(script), str(path)], stdout=subprocess.PIPE, env=os.environ)
    with child:
        while int(child.stdout.readline()) < 2:
            pass
        time.sleep(np.random.default_rng().uniform(0, 0.3))
        os.kill(child.pid, signal.SIGKILL)
    assert Store.open(path).n_episodes >= 2
    assert [f for f in validate(path) if f.level == "error"] == []
    again = collect(make_cfg(path, episodes_per_task=4))
    assert_same_stores(again, collect(make_cfg(tmp_path / "straight.zarr", episodes_per_task=4)))
