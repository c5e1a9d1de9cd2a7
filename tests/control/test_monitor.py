"""The monitor's laws: what is compared with what, when, and how often it may be wrong."""

import dataclasses
import json
import math
import threading

import numpy as np
import pytest
import torch
from small import ACTION, CHUNK, PROPRIO, SIZE, small_policy

from padpolicy.config import ConfigError, MonitorConfig
from padpolicy.control.monitor import (
    CHANNELS,
    Monitor,
    Thresholds,
    Tracking,
    conformal,
    policy_fingerprint,
    surprise,
)
from padpolicy.control.robot import Observation
from padpolicy.data.actions import ActionSpec, to_waypoints

OFFSET = 0.3  # of small_policy's nearest imagined frame
SPECS = {
    "delta": ActionSpec("delta", ["x", "y", "grip"], 0.1, gripper="binary", scale=[0.5, 0.5, 1]),
    "absolute": ActionSpec("absolute", ["x", "y", "grip"], 0.1, gripper="binary"),
    "relative": ActionSpec("relative_to_chunk_start", ["x", "y", "grip"], 0.1, gripper="binary"),
}


@pytest.fixture(scope="module")
def policy():
    policy = small_policy(steps=1).eval()
    policy.spec.action = SPECS["delta"].to_dict()
    return policy


def monitor_of(policy, limits=1.0, tracking=None, **settings):
    cfg = MonitorConfig(**settings)
    unit = Thresholds.unit(cfg, tracking, policy_fingerprint(policy))
    return Monitor(policy, cfg, dataclasses.replace(unit, limits={"": dict.fromkeys(CHANNELS, limits)}))


def observation(time_s, commanded=(0.0, 0.0, 1.0), seed=None, proprio=None):
    rng = np.random.default_rng(round(time_s * 1000) if seed is None else seed)
    fields = {f"rgb_{camera}": rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8) for camera in ("front", "wrist")}
    fields["depth_front"] = rng.integers(1, 900, (SIZE, SIZE)).astype(np.uint16)
    fields["proprio"] = np.zeros(PROPRIO, np.float32) if proprio is None else proprio
    return Observation(time_s, fields, np.array(commanded))


@pytest.mark.parametrize(
    ("n", "share", "rank"), [(19, 0.05, 19), (18, 0.05, None), (99, 0.01, 99), (200, 0.05, 191), (40, 0.1, 37)]
)
def test_conformal_is_the_exact_order_statistic(n, share, rank):
    maxima = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    assert conformal(maxima, share) == (math.inf if rank is None else rank)


def test_conformal_keeps_its_promise():
    """Over many calibrations, a further draw exceeds the threshold about as often as allowed, never much more."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(4000):
        *maxima, further = rng.standard_exponential(40)
        wrong += further > conformal(maxima, 0.1)
    assert 0.07 < wrong / 4000 < 0.115  # 4 / 41 = 0.098 in expectation


def test_thresholds_of_a_task_with_too_few_are_those_of_all():
    cfg = MonitorConfig(shares={"imagined": 0.05, "picture": 0.05, "tracking": 0.01})
    rng = np.random.default_rng(1)
    episodes = {
        task: [{c: float(v) for c, v in zip(CHANNELS, rng.random(3), strict=True)} for _ in range(n)]
        for task, n in (("many", 99), ("some", 20), ("few", 5))
    }
    thresholds = Thresholds.fit(episodes, cfg, policy="p", seeds=[1, 2])
    pooled = thresholds.of("never seen")
    assert thresholds.of("few") == pooled
    assert thresholds.of("some") == {
        "imagined": max(e["imagined"] for e in episodes["some"]),
        "picture": max(e["picture"] for e in episodes["some"]),
        "tracking": pooled["tracking"],
    }
    assert thresholds.of("many")["tracking"] == max(e["tracking"] for e in episodes["many"])
    assert thresholds.counts == {"many": 99, "some": 20, "few": 5, "": 124}
    with pytest.raises(ConfigError, match="25 successful calibration episodes, expected at least 99"):
        Thresholds.fit({task: episodes[task] for task in ("some", "few")}, cfg)


def test_thresholds_on_disk(tmp_path):
    one = {"imagined": 1.0, "picture": 2.0, "tracking": 3.0}
    rng = np.random.default_rng(0)
    tracking = Tracking.fit(rng.random((50, ACTION)), rng.random((50, PROPRIO)))
    thresholds = Thresholds.fit({"a": [one] * 120, "b": [one] * 3}, MonitorConfig(), tracking=tracking, policy="abc")
    thresholds.save(tmp_path / "monitor.json")
    assert Thresholds.load(tmp_path / "monitor.json") == thresholds
    values = json.loads((tmp_path / "monitor.json").read_text())
    assert set(values["limits"]) == {"", "a"} and values["counts"]["b"] == 3 and values["policy"] == "abc"
    for wrong in ({"format": 9}, {"colour": 1}, {"limits": {}}, {"config": {"speed": 1}}, {"tracking": 3}):
        with pytest.raises(ConfigError, match="Calibrate again"):
            Thresholds.from_json({**values, **wrong})
    with pytest.raises(ConfigError, match=r"scripts/monitor_study.py"):
        Thresholds.load(tmp_path / "nothing.json")


def test_refuses_what_it_cannot_watch(policy):
    thresholds = Thresholds.unit(MonitorConfig(), None, policy_fingerprint(policy))
    Monitor(policy, MonitorConfig(on_alarm="stop"), thresholds)
    with pytest.raises(ConfigError, match="thresholds are of policy 'other'"):
        Monitor(policy, MonitorConfig(), dataclasses.replace(thresholds, policy="other"))
    with pytest.raises(ConfigError, match=r"monitor.cells is 9, the thresholds were made with 4"):
        Monitor(policy, MonitorConfig(cells=9), thresholds)
    unknown = small_policy(steps=1)
    with pytest.raises(ConfigError, match="'unknown'; expected an imagined camera and actions of a known kind"):
        Monitor(unknown, MonitorConfig(), Thresholds.unit(MonitorConfig(), None, policy_fingerprint(unknown)))


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("rate", [1, 4])
def test_executed_actions_come_from_the_commanded_poses(kind, rate):
    """Actions -> commanded poses, seen at 10 or 40 Hz -> the same actions, then held until the chunk ends."""
    policy = small_policy(steps=1).eval()
    spec, policy.spec.action = SPECS[kind], SPECS[kind].to_dict()
    chunk = np.random.default_rng(0).uniform(-0.04, 0.04, (3, ACTION))
    chunk[:, 2] = [1, 0, 0]
    way = np.vstack([[0.4, 0.1, 1.0], to_waypoints(chunk, np.array([0.4, 0.1, 1.0]), spec)])
    monitor = monitor_of(policy, every_s=10.0)
    grid = np.arange(4) * 0.1
    for i in range(3 * rate + 1):
        time = 0.1 * i / rate
        pose = [np.interp(time, grid, column) for column in way.T]
        pose[2] = way[int(np.ceil(time / 0.1 - 1e-9)), 2]  # the gripper is commanded at once
        monitor.observe(observation(5.0 + time, pose))
        assert monitor.due() == (i == 3 * rate)
    moment = monitor.take()
    assert moment.actions_TA.shape == (CHUNK, ACTION) and moment.actions_TA.dtype == np.float32
    np.testing.assert_allclose(moment.actions_TA[:3], chunk, atol=1e-6)
    hold = [0, 0, 0] if kind == "delta" else chunk[2]
    np.testing.assert_allclose(moment.actions_TA[3:], np.tile(hold, (CHUNK - 3, 1)), atol=1e-6)


def test_moments_pair_each_observation_with_its_own_future(policy):
    monitor, pairs = monitor_of(policy, every_s=0.2), []
    for i in range(12):
        monitor.observe(observation(0.1 * i))
        if monitor.due():
            moment = monitor.take()
            assert not monitor.due() and monitor.take() is None
            begun, due = round(moment.time_s - OFFSET, 3), moment.time_s
            pairs.append(begun)
            np.testing.assert_array_equal(
                moment.sample.fields["obs.rgb_front"][0], observation(begun).fields["rgb_front"]
            )
            np.testing.assert_array_equal(moment.seen["front"], observation(due).fields["rgb_front"])
    assert pairs == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_a_dropped_frame_gives_no_moment_and_jitter_takes_the_nearest(policy):
    monitor = monitor_of(policy, every_s=10.0)
    for time in (0.0, 0.1, 0.2, 0.36):  # due at 0.3: 0.36 is too far, 0.2 as well
        monitor.observe(observation(time))
    assert not monitor.due()
    monitor.reset()
    for time in (0.0, 0.1, 0.27, 0.36):
        monitor.observe(observation(time))
    assert monitor.take().time_s == 0.27


def test_surprise_is_the_error_over_what_imagined_change_excuses(policy):
    """Against a calculation by hand, and nothing surprises where the picture is what was imagined."""
    monitor = monitor_of(policy, every_s=10.0)
    for i in range(4):
        monitor.observe(observation(0.1 * i, (0.01 * i, 0.0, 1.0)))
    moment = monitor.take()
    got, error = surprise(policy, monitor.cfg, [moment])
    noise = {
        name: torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
        for name, shape in policy.noise_shapes("forward").items()
    }
    from padpolicy.batch import collate

    batch = collate([moment.sample])
    imagined = policy.predict(
        batch, mode="forward", actions=torch.from_numpy(moment.actions_TA)[None], noise=noise, steps=1
    ).future_latent["front"][0, 0]
    now, seen = (
        policy.encode(batch.fields["obs.rgb_front"])[0, 0],
        policy.encode(torch.from_numpy(moment.seen["front"])),
    )
    wrong, change = ((imagined - seen) ** 2).mean(0).numpy(), ((imagined - now) ** 2).mean(0).numpy()
    for y in range(4):
        for x in range(4):
            near = change[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max()
            wide = change[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].max()
            expected = wrong[y, x] / (0.3 + 0.7 * change[y, x] + 0.4 * near + 0.1 * wide)
            np.testing.assert_allclose(got[0, 4 * y + x], expected, rtol=1e-4)
    np.testing.assert_allclose(error[0], wrong.ravel(), rtol=1e-4)
    twice, _ = surprise(policy, monitor.cfg, [moment, moment])
    np.testing.assert_allclose(twice[1], got[0], rtol=1e-4)


def test_what_surprises_once_is_forgiven_and_twice_is_not(policy):
    monitor = monitor_of(policy, every_s=0.1, cells=2)
    for i in range(4):
        monitor.observe(observation(0.1 * i))
    moment = monitor.take()
    blur, new = torch.tensor([9.0, 0, 0, 0]), torch.tensor([0, 8.0, 6.0, 0])
    flat = torch.full((4,), 0.5)
    assert monitor.score(moment, blur, flat).parts == {"imagined": 0.0, "picture": 0.5, "tracking": 0.0}
    later = [dataclasses.replace(moment, time_s=moment.time_s + 0.1 * i) for i in range(5)]
    assert not monitor.score(later[1], new, flat).alarm
    score = monitor.score(later[2], new, flat)
    assert score.parts["imagined"] == 7.0 and score.value == 7.0 and score.alarm
    monitor.reset()
    monitor.score(later[0], new, flat)
    far = dataclasses.replace(moment, time_s=moment.time_s + OFFSET)  # no common past: not the same surprise
    assert monitor.score(far, new, flat).parts["imagined"] == 0.0


def test_tracking_finds_the_linear_map_and_waits_for_contact_to_pass(policy):
    rng = np.random.default_rng(0)
    commanded, true = rng.standard_normal((400, ACTION)), rng.standard_normal((ACTION + 1, PROPRIO))
    proprio = np.column_stack([commanded, np.ones(400)]) @ true + 0.01 * rng.standard_normal((400, PROPRIO))
    tracking = Tracking.fit(commanded, proprio)
    np.testing.assert_allclose(tracking.weight, true, atol=0.01)
    distances = [tracking.distance(c, p) for c, p in zip(commanded, proprio, strict=True)]
    np.testing.assert_allclose(np.mean(np.square(distances)), PROPRIO, rtol=1e-3)  # by its definition
    with pytest.raises(ValueError, match="expected at least 40"):
        Tracking.fit(commanded[:39], proprio[:39])

    def largest(off_at):
        monitor, values = monitor_of(policy, tracking=tracking, every_s=0.1, tracking_s=0.3), []
        for i in range(12):
            measured = np.array([0, 0, 1, 1]) @ true + (0.1 if i in off_at else 0.0)
            monitor.observe(observation(0.1 * i, (0, 0, 1), proprio=measured.astype(np.float32)))
            if (score := monitor.judge()) is not None:
                values.append(score.parts["tracking"])
        return max(values)

    assert largest({5, 6, 7}) < 3 < 15 < largest({5, 6, 7, 8})  # 0.3 s need four observations


def test_limits_scale_the_parts(policy):
    scores = []
    for limit in (1.0, 4.0, math.inf):
        monitor, last = monitor_of(policy, limits=limit), None
        for i in range(8):
            monitor.observe(observation(0.1 * i))
            last = monitor.judge() or last
        scores.append(last)
    for channel in CHANNELS:
        assert scores[1].parts[channel] == pytest.approx(scores[0].parts[channel] / 4)
    assert scores[0].parts["imagined"] > 0 and scores[2].value == 0 and not scores[2].alarm


def test_judging_in_a_thread_while_observing_agrees_with_judging_at_once(policy):
    at_once, beside = monitor_of(policy, every_s=0.1), monitor_of(policy, every_s=0.1)
    wanted, got, done = {}, {}, threading.Event()

    def work():
        while not done.is_set():
            if (score := beside.judge()) is not None:
                got[score.time_s] = score.parts["picture"]

    worker = threading.Thread(target=work)
    worker.start()
    for i in range(40):
        seen = observation(0.1 * i, (0.001 * i, 0.0, 1.0))
        at_once.observe(seen)
        beside.observe(seen)
        if (score := at_once.judge()) is not None:
            wanted[score.time_s] = score.parts["picture"]
    done.set()
    worker.join()
    assert got and got.items() <= wanted.items()


def test_observation_without_the_imagined_camera(policy):
    monitor, seen = monitor_of(policy), observation(0.0)
    del seen.fields["rgb_front"]
    with pytest.raises(ValueError, match="no picture of camera front among"):
        monitor.observe(seen)
