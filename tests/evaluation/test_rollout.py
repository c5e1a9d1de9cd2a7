"""Laws of the closed loop, on a tiny environment and a tiny policy."""

import dataclasses
import os
import signal

import fakes
import numpy as np
import pytest
import torch

from padpolicy.config import EnvConfig, EvalConfig
from padpolicy.control.chunking import ChunkQueue
from padpolicy.data.store import Episode, Store, StoreSpec
from padpolicy.evaluation import episodes as lists
from padpolicy.evaluation.floors import replay, without_images, without_text
from padpolicy.evaluation.rollout import (
    DRIVE_LEAST,
    DRIVE_MOST,
    DRIVES,
    EpisodeSpec,
    check_fit,
    needed_cameras,
    plan_noise,
    run_episodes,
)
from padpolicy.evaluation.vector import Act, Reset, VectorEnv

ENV = EnvConfig(id="fakes:Fake-v0", robot="fake", renderer="rays", cameras=["front"])


def config(**changes):
    return EvalConfig(
        **({"checkpoint": "", "out": "", "env": ENV, "env_workers": 0, "num_envs": 3, "exec_steps": 4} | changes)
    )


def rollout(policy, cfg, episodes, **options):
    """Runs episodes as `run_evaluation` does."""
    with VectorEnv(needed_cameras(policy.spec, cfg).env, min(cfg.num_envs, len(episodes)), cfg.env_workers) as envs:
        check_fit(policy.spec, envs.description, cfg)
        return run_episodes(policy, envs, cfg, episodes, **options)


EPISODES = [EpisodeSpec(task, seed) for seed in range(4) for task in ("left", "right")]


def outcome(result):
    return (
        result.spec,
        result.instruction,
        result.success,
        result.terminated,
        result.truncated,
        result.steps,
        len(result.plan_ms),
    )


def test_every_episode_runs_once_and_comes_back_in_order():
    seen = []
    results = rollout(fakes.FakePolicy(), config(), EPISODES, progress=lambda done, n, r: seen.append((done, n)))
    assert [r.spec for r in results] == EPISODES
    assert seen == [(i + 1, 8) for i in range(8)]
    assert all(r.success and r.terminated and not r.truncated for r in results)
    assert [r.instruction for r in results[:2]] == ["go left", "go right"]
    assert all(len(r.plan_ms) == -(-r.steps // 4) for r in results)


@pytest.mark.parametrize(("num_envs", "env_workers"), [(1, 0), (8, 0), (3, 2)])
def test_results_do_not_depend_on_what_runs_beside(num_envs, env_workers):
    reference = rollout(fakes.FakePolicy(noise=3.0), config(), EPISODES)
    policy = fakes.FakePolicy(noise=3.0)
    results = rollout(policy, config(num_envs=num_envs, env_workers=env_workers), EPISODES)
    assert [outcome(r) for r in results] == [outcome(r) for r in reference]
    assert max(policy.batches) == min(num_envs, 8)
    assert len({r.steps for r in results}) > 2  # the noise makes them differ, so that equality says something


def test_any_order_and_any_part_of_the_list_gives_the_same_episodes():
    reference = {r.spec: outcome(r) for r in rollout(fakes.FakePolicy(noise=3.0), config(), EPISODES)}
    for part in (EPISODES[::-1], EPISODES[3:5]):
        assert all(outcome(r) == reference[r.spec] for r in rollout(fakes.FakePolicy(noise=3.0), config(), part))


def test_plan_noise_is_a_function_of_its_key():
    policy, one = fakes.FakePolicy(), EpisodeSpec("left", 1)
    first = plan_noise(policy, one, 0)["action"]
    np.testing.assert_array_equal(first, plan_noise(policy, one, 0)["action"])
    others = [
        plan_noise(policy, one, 1),
        plan_noise(policy, EpisodeSpec("left", 2), 0),
        plan_noise(policy, EpisodeSpec("right", 1), 0),
    ]
    assert all(not np.array_equal(first, other["action"]) for other in others)
    np.testing.assert_array_equal(plan_noise(policy, one, 0, temperature=0.5)["action"], 0.5 * first)


@pytest.mark.parametrize("acts_in", ["policy", "joint"])
def test_a_policy_acts_in_its_mode_from_noise_for_all_that_it_denoises(acts_in):
    asked = []

    class Watched(fakes.FakePolicy):
        def predict(self, obs, *, mode="policy", noise=None, **options):
            asked.append((mode, {field: tuple(x.shape) for field, x in noise.items()}))
            return super().predict(obs, mode=mode, noise=noise, **options)

    policy = Watched()
    policy.acts_in = acts_in
    rollout(policy, config(num_envs=2), EPISODES[:2])
    shapes = {field: (2, *shape) for field, shape in policy.noise_shapes(acts_in).items()}
    assert asked[0] == (acts_in, shapes) and {mode for mode, _ in asked} == {acts_in}


def test_truncation_is_not_termination():
    results = rollout(fakes.FakePolicy(noise=0.0), config(), [EpisodeSpec("stay", 5)])
    assert results[0].truncated and not results[0].terminated and results[0].steps == 30
    limited = EnvConfig(**{**vars(ENV), "max_steps": 3})
    assert rollout(fakes.FakePolicy(), config(env=limited), EPISODES[:1])[0].steps == 3


def test_success_is_latched():
    # "stay" succeeds near 0 only; a policy that walks through it has succeeded.
    class Walker(fakes.FakePolicy):
        def predict(self, obs, **options):
            obs.text = ["go right" if x < 0 else "go left" for x in obs.fields["obs.proprio"][:, 0, 0]]
            return super().predict(obs, **options)

    result = rollout(Walker(noise=0.0), config(exec_steps=8), [EpisodeSpec("stay", s) for s in range(6)])
    assert any(r.success for r in result) and all(r.truncated for r in result)


def test_floors():
    cfg = config()
    assert not any(r.success for r in rollout(without_images(fakes.FakePolicy(noise=0.0)), cfg, EPISODES))
    assert not any(r.success for r in rollout(without_text(fakes.FakePolicy(noise=0.0)), cfg, EPISODES))


def test_replay_plays_a_demonstration_of_the_same_task_to_its_end(tmp_path):
    from padpolicy.data.actions import ActionSpec

    spec = StoreSpec(cameras={}, action=ActionSpec("delta", ["dx"], 0.1), robot="fake", dt_s=0.1)
    store = Store.create(tmp_path / "demos.zarr", spec)
    for task, value, n in (("left", -1.0, 9), ("right", 1.0, 5)):
        arrays = {"action": np.full((n, 1), value, np.float32), "timestamp": np.arange(n) * 0.1}
        store.append(Episode(arrays, task=task))
    store.close()
    results = rollout(fakes.FakePolicy(), config(), EPISODES, open_loop=replay(tmp_path / "demos.zarr"))
    left, right = [r for r in results if r.spec.task == "left"], [r for r in results if r.spec.task == "right"]
    assert all(r.success for r in left) and all(r.steps <= 9 for r in left)
    short = [r for r in right if not r.success]
    assert short and all(r.steps == 5 and not r.terminated and not r.truncated for r in short)


def test_the_other_instruction_in_the_same_scene():
    with VectorEnv(ENV, 2, 0) as envs:
        switched = lists.other_instructions(envs, EPISODES)
    assert [(s.task, s.seed, s.scene_of) for s in switched[:2]] == [("right", 0, "left"), ("left", 0, "right")]
    assert len(switched) == len(EPISODES)


def test_old_goal_needs_to_hold(monkeypatch):
    monkeypatch.setattr(EpisodeSpec, "options", lambda self: {"task": self.task})  # the fake knows no scene_of
    results = rollout(fakes.FakePolicy(noise=0.0), config(), [EpisodeSpec("right", 0, scene_of="left")])
    assert results[0].success and not results[0].old_goal
    results = rollout(
        fakes.FakePolicy(noise=0.0), config(), [EpisodeSpec("stay", s, scene_of="stay") for s in range(6)]
    )
    assert [r.old_goal for r in results] == [r.success for r in results] and any(r.old_goal for r in results)


def test_held_out_paraphrase_reaches_the_policy():
    results = rollout(fakes.FakePolicy(), config(), [EpisodeSpec("left", 0, "held_out"), EpisodeSpec("left", 0)])
    assert [r.instruction for r in results] == ["go left please", "go left"]


def test_films_show_what_happened_and_what_was_imagined():
    policy = fakes.FakePolicy(noise=0.0)
    with_film, without = rollout(policy, config(), EPISODES[:2], films={0})
    film = with_film.film
    assert without.film is None
    assert len(film.observed) == len(film.pictures) == with_film.steps + 1
    assert film.pictures[0].shape == (32, 32, 3)
    assert [moment.step for moment in film.imagined] == list(range(0, with_film.steps, 4))
    for moment in film.imagined:  # the fake imagines exactly what its actions do, up to a pixel
        then = min(moment.step + 4, with_film.steps)
        if then < moment.step + 4:
            continue
        difference = np.abs(moment.frames[0].astype(int) - film.observed[then]).astype(bool).any(-1)
        assert difference.sum() <= 6


def test_pictures_are_letterboxed_to_the_size_of_training():
    seen = []

    class Looker(fakes.FakePolicy):
        def predict(self, obs, **options):
            seen.append((obs.fields["obs.rgb_front"].shape[2:], obs.fields["obs.depth_front"].shape[2:]))
            return super().predict(obs, **options)

    rollout(Looker(image_size=12), config(), EPISODES[:1])
    assert set(seen) == {((12, 12, 3), (12, 12))}


def test_a_policy_may_look_back_over_the_whole_episode():
    """30 steps are 3 s: what is kept follows from the policy."""
    seen = []

    class Rememberer(fakes.FakePolicy):
        def predict(self, obs, **options):
            seen.append(obs.fields["obs.proprio"].shape[1])
            return super().predict(obs, **options)

    results = rollout(Rememberer(noise=0.0, obs_steps=30), config(), [EpisodeSpec("stay", 0)])
    assert results[0].steps == 30 and set(seen) == {30}


def test_filming_changes_nothing():
    a = rollout(fakes.FakePolicy(noise=3.0), config(), EPISODES, films={0, 3})
    b = rollout(fakes.FakePolicy(noise=3.0), config(imagine=False), EPISODES)
    assert [outcome(r) for r in a] == [outcome(r) for r in b]


@pytest.mark.parametrize(
    ("changes", "env", "message"),
    [
        ({"action_dim": 4}, {}, r"takes actions of 1 dims, the policy gives 4 \(dx\)"),
        ({"cameras": ["front", "side"]}, {}, "looks through camera side, but environment fakes:Fake-v0 has front"),
        ({"renderer": "egl"}, {}, "drawn by renderer 'rays', the policy learned from pictures drawn by 'egl'"),
        ({"proprio_dim": 7}, {}, r"proprio has shape \(1,\), the policy expects \(7,\)"),
        ({"image_size": 32}, {}, "rgb_front is 16 x 16 pixels, the policy looks at 32. Draw larger ones, or train"),
        ({"dt_s": 0.05}, {}, "steps every 0.1 s, the policy's actions are 0.05 s apart"),
        ({"chunk_steps": 2}, {}, "exec_steps=4: expected 1 to 2"),
        ({"action": {"kind": "relative_to_chunk_start", "names": ["dx"], "dt_s": 0.1}}, {}, "relative to the start of"),
        ({}, {"id": "nobody/Knows-v0"}, "unknown environment 'nobody/Knows-v0'"),
        ({}, {"id": "fakes:Fak-v0"}, "unknown environment 'fakes:Fak-v0'.*Did you mean: `Fake`"),
        ({}, {"id": "no_such_package:Fake-v0"}, "unknown environment 'no_such_package:Fake-v0'"),
        ({}, {"id": ""}, "no environment"),
    ],
)
def test_what_does_not_fit_is_said(changes, env, message):
    with pytest.raises(ValueError, match=message):
        rollout(fakes.FakePolicy(**changes), config(env=EnvConfig(**{**vars(ENV), **env})), EPISODES[:1])


class Poser(fakes.FakePolicy):
    """Says where to be: at the goal of its words, or where it was told to point."""

    def __init__(self, point=None, **changes):
        super().__init__(noise=0.0, **{"action": {"kind": "absolute", "names": ["x"], "dt_s": 0.1}, **changes})
        self.point = point

    def predict(self, obs, **options):
        prediction = super().predict(obs, **options)
        x = 0.6 * prediction.action if self.point is None else torch.full_like(prediction.action, self.point)
        x[:, 1:] = 9.0  # the first pose counts, no later one
        return dataclasses.replace(prediction, action=x)


WAYPOINT = {"execution": "waypoint", "exec_steps": 1}


def test_waypoint_execution_drives_to_the_first_pose_of_each_plan():
    results = rollout(Poser(), config(**WAYPOINT), EPISODES)
    assert all(r.success and len(r.plan_ms) == 1 for r in results)
    acted = np.concatenate(results[0].actions)
    assert len(acted) == results[0].steps and set(acted.ravel()) == {-1.0}  # "left", at full speed


def test_waypoint_execution_ends_after_twenty_plans_of_ten_to_fifty_steps():
    patient = dataclasses.replace(ENV, options={"limit": 2000})
    for point, steps in ((0.0, DRIVE_LEAST), (5.0, DRIVE_MOST)):  # is there soon, or never
        (result,) = rollout(Poser(point), config(env=patient, **WAYPOINT), [EpisodeSpec("stay", 0)])
        assert len(result.plan_ms) == len(result.actions) == DRIVES and result.truncated and not result.terminated
        assert {len(drive) for drive in result.actions[1:]} == {steps}


def test_waypoint_execution_turns_deltas_into_poses_only_where_it_knows_from_where():
    with pytest.raises(ValueError, match="does not say from which pose they count"):
        rollout(fakes.FakePolicy(), config(**WAYPOINT), EPISODES[:1])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unknown_task_names_itself(workers):
    with pytest.raises(ValueError, match="unknown task 'fly'"):
        rollout(fakes.FakePolicy(), config(env_workers=workers), [EpisodeSpec("fly", 0)])


def test_a_plan_that_is_not_finite_never_reaches_a_motor():
    class Broken(fakes.FakePolicy):
        def predict(self, obs, **options):
            prediction = super().predict(obs, **options)
            prediction.action[0, 3] = float("nan")
            return prediction

    with pytest.raises(ValueError, match="not finite .task 'left', seed 0, step 0"):
        rollout(Broken(), config(num_envs=1), EPISODES)


def test_actions_are_those_of_the_queue(monkeypatch):
    """Closed loop through VectorEnv equals a plain loop: observe, plan, execute exec_steps of the chunk."""
    import gymnasium

    from padpolicy.batch import collate
    from padpolicy.control.chunking import ObservationBuffer

    policy, spec = fakes.FakePolicy(noise=3.0), EpisodeSpec("left", 3)
    result = rollout(policy, config(exec_steps=3), [spec], films={0})[0]
    env = gymnasium.make("fakes:Fake-v0", disable_env_checker=True)
    observation, _ = env.reset(seed=3, options={"task": "left"})
    buffer, queue, step, done = ObservationBuffer.of(policy.spec), ChunkQueue(), 0, False
    frames = [observation["rgb_front"]]
    while not done:
        buffer.push(step * 0.1, observation)
        if step % 3 == 0:
            noise = plan_noise(policy, spec, step // 3)["action"]
            import torch

            batch = collate([buffer.sample(policy.spec, "go left", "fake")])
            chunk = policy.predict(batch, noise={"action": torch.from_numpy(noise)[None]}).action[0].numpy()
            queue.put(step * 0.1, 0.1, chunk)
        observation, _, terminated, truncated, _ = env.step(np.clip(queue.at(step * 0.1), -1, 1))
        frames.append(observation["rgb_front"])
        step, done = step + 1, terminated or truncated
    assert step == result.steps
    np.testing.assert_array_equal(frames, result.film.observed)


def test_vector_stops_at_the_end_of_an_episode():
    with VectorEnv(ENV, 2, 2) as envs:
        envs.run({0: Reset(0, {"task": "left"}), 1: Reset(0, {"task": "right"})})
        steps = envs.run(
            {0: Act(np.full((20, 1), -1.0, np.float32), watch=["right"]), 1: Act(np.zeros((2, 1), np.float32))}
        )
    assert len(steps[1]) == 2 and len(steps[0]) < 20
    assert steps[0][-1].terminated and steps[0][-1].success and steps[0][-1].watched == {"right": False}
    assert not any(step.terminated for step in steps[0][:-1])


@pytest.mark.parametrize("before_it_is_told", [False, True])
def test_a_worker_that_is_killed_says_of_what(before_it_is_told):
    with VectorEnv(ENV, 2, 2) as envs:
        os.kill(envs._processes[1].pid, signal.SIGKILL)
        if before_it_is_told:
            envs._processes[1].join()
        with pytest.raises(RuntimeError, match="environment worker 1 died of SIGKILL; its output"):
            envs.run({0: Reset(0, {"task": "left"}), 1: Reset(0, {"task": "right"})})


def test_episode_list():
    with VectorEnv(ENV, 1, 0) as envs:
        env = envs.description
    episodes = lists.episode_list(config(seed=100, episodes_per_task=2), env)
    assert [(e.task, e.seed) for e in episodes] == [("left", 100), ("right", 100), ("left", 101), ("right", 101)]
    assert lists.checksum(episodes) == lists.checksum(list(episodes))
    assert len({lists.checksum(x) for x in (episodes, episodes[::-1], episodes[:3])}) == 3
    with pytest.raises(ValueError, match="has no task 'fly'; it has: left, right, stay"):
        lists.episode_list(config(tasks=["fly"]), env)
    assert lists.spread(10, 3) == [0, 4, 9] and lists.spread(2, 12) == [0, 1] and lists.spread(5, 0) == []
