"""Laws of the safety filter: no setpoint leaves a limit, and every refusal and every hold has its reason."""

import copy
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from padpolicy.config import ConfigError, LimitsConfig, SafetyConfig
from padpolicy.control.robot import Intervention, Plan
from padpolicy.control.safety import KINDS, Limiter, Safety, check_config
from padpolicy.control.track import Track

ROOT = Path(__file__).resolve().parents[2]
DT = 0.01
ARM = LimitsConfig(low=[-0.5], high=[0.5], velocity=[0.6], acceleration=[8.0], jerk=[400.0])


def shares(row: list[np.ndarray], limits: LimitsConfig, dt_s: float) -> dict[str, float]:
    """The largest share of each limit in setpoints `dt_s` apart, beyond what the rounding of positions makes up."""
    positions = np.array(row)
    low, high = np.array(limits.low), np.array(limits.high)
    used = {"workspace": float((np.abs(positions - (low + high) / 2) / ((high - low) / 2)).max())}
    rounding = 8 * np.finfo(float).eps * np.maximum(np.abs(low), np.abs(high))
    for order, key in enumerate(("velocity", "acceleration", "jerk"), 1):
        rate = (np.abs(np.diff(positions, order, axis=0)) - rounding).max(axis=0) / dt_s**order
        used[key] = float((rate / np.array(getattr(limits, key))).max())
    return used


class TestLimiter:
    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), dims=st.integers(1, 6), dt_s=st.sampled_from([0.002, 0.01, 0.05]))
    def test_whatever_it_follows_all_limits_hold(self, seed, dims, dt_s):
        rng = np.random.default_rng(seed)
        low = rng.uniform(-2, 0, dims)
        high = low + 10 ** rng.uniform(-1.5, 1, dims)
        velocity = 10 ** rng.uniform(-1.5, 1, dims)
        acceleration = velocity * 10 ** rng.uniform(0, 2, dims)
        jerk = acceleration * 10 ** rng.uniform(0, 2.5, dims)
        limits = LimitsConfig(*(values.tolist() for values in (low, high, velocity, acceleration, jerk)))
        start = np.where(rng.random(dims) < 0.3, rng.choice([0, 1]) * (high - low) + low, rng.uniform(low, high))
        start = np.clip(start, low, high)
        limiter = Limiter(limits, dt_s, start)
        row, target, pace = [start] * 3, start, np.zeros(dims)
        for _ in range(100):
            luck = rng.random()
            if luck < 0.1:
                target = low + (high - low) * rng.uniform(-0.3, 1.3, dims)
            elif luck < 0.15:
                target = np.where(rng.random(dims) < 0.5, low, high)
            elif luck < 0.25:
                pace = rng.normal(size=dims) * velocity * rng.choice([0, 1, 1e3])
            elif luck < 0.27:
                target = np.sign(target) * rng.choice([np.nan, np.inf, 1e308, 5e-324])
            target = target + pace * dt_s
            row.append(limiter.brake() if luck > 0.95 else limiter.follow(target, pace))
        longest = math.ceil((limiter.braking_s + acceleration / jerk).max() / dt_s) + 1
        row += [limiter.brake() for _ in range(longest)]
        np.testing.assert_array_equal(limiter.velocity, np.zeros(dims))
        assert all(share <= 1 + 1e-6 for share in shares(row, limits, dt_s).values()), shares(row, limits, dt_s)

    def test_it_catches_up_with_a_moving_target_and_then_does_not_lag(self):
        track = Track(np.zeros(1), np.zeros(1, bool))
        track.put(0.0, np.arange(1, 11) / 10, np.arange(1, 11)[:, None] * 0.04)  # 0.4 m/s
        limiter = Limiter(ARM, DT, np.zeros(1))
        errors = [limiter.follow(*track.at(DT * k))[0] - track.at(DT * k)[0][0] for k in range(1, 100)]
        assert 0.010 < max(np.abs(errors)) < 0.015  # what it takes to reach 0.4 m/s within the limits
        assert np.abs(errors[20:]).max() < 1e-9

    def test_it_reaches_a_resting_target_without_going_past_it(self):
        limiter = Limiter(ARM, DT, np.zeros(1))
        row = np.array([limiter.follow(np.array([0.3]), np.zeros(1))[0] for _ in range(80)])
        assert row.max() <= 0.3 + 1e-9
        assert abs(row[-1] - 0.3) < 1e-9
        # The quickest way at rest to rest: distance / velocity + velocity / acceleration + acceleration / jerk.
        quickest = 0.3 / 0.6 + 0.6 / 8 + 8 / 400
        assert abs(row[int(quickest / DT) - 1] - 0.3) < 1e-4 < 0.3 - row[int(quickest / DT) - 6]

    def test_numbers_move_on_their_own(self):
        """One that is driven into its border does not slow the other down."""
        both = LimitsConfig([-0.5] * 2, [0.05, 0.5], [0.6] * 2, [8.0] * 2, [400.0] * 2)
        two, one = Limiter(both, DT, np.zeros(2)), Limiter(ARM, DT, np.zeros(1))
        for k in range(1, 60):
            pair = two.follow(np.array([0.5 * k * DT, 0.4 * k * DT]), np.array([0.5, 0.4]))
            alone = one.follow(np.array([0.4 * k * DT]), np.array([0.4]))
            assert abs(pair[1] - alone[0]) < 1e-12
        assert 0.05 - 1e-6 < pair[0] <= 0.05

    @pytest.mark.parametrize("pace", [0.0, 0.6, 100.0])
    def test_a_target_beyond_the_border_ends_at_the_border(self, pace):
        limiter = Limiter(ARM, DT, np.zeros(1))
        row = [np.zeros(1)] * 3 + [limiter.follow(np.array([9.0]), np.array([pace])) for _ in range(150)]
        assert 0.5 - 1e-6 < row[-1][0] <= 0.5
        assert max(shares(row, ARM, DT).values()) <= 1

    def test_the_stop_is_the_quickest_there_is(self):
        limiter = Limiter(ARM, DT, np.array([-0.5]))
        while limiter.velocity[0] < 0.599 or abs(limiter.acceleration[0]) > 1e-3:
            limiter.follow(np.array([0.5]), np.zeros(1))
        began, cycles = limiter.position[0], 0
        while limiter.velocity[0]:
            limiter.brake()
            cycles += 1
        assert cycles == math.ceil((0.6 / 8 + 8 / 400) / DT)
        assert abs(limiter.position[0] - began - 0.3 * (0.6 / 8 + 8 / 400)) < 1e-3

    @pytest.mark.parametrize("half", [0.02, 0.2])
    def test_where_braking_leads_is_known_before(self, half):
        """The verdict on a state agrees with the braking itself, looked at closely."""
        rng = np.random.default_rng(0)
        limiter = Limiter(LimitsConfig([-half], [half], [0.6], [8.0], [400.0]), DT, np.zeros(1))
        verdicts = []
        for _ in range(800):
            p, v, a = rng.uniform(-half, half), rng.uniform(-0.65, 0.65) * rng.choice([0.1, 1]), rng.uniform(-8.2, 8.2)
            (verdict,) = limiter._brakes_inside([float(p)], [float(v)], [float(a)])
            braking = limiter._spare
            ways = np.array([braking.at_time(t) for t in np.linspace(0, braking.duration, 100)])[:, :, 0]
            room = float((1 - np.abs(ways).max(axis=0) / [half, 0.6, 8.0]).min())
            if abs(room) > 1e-3:  # closer than that the samples do not tell
                assert verdict == (room > 0), (p, v, a)
                verdicts.append(verdict)
        assert 50 < sum(verdicts) < len(verdicts) - 50

    def test_what_it_gives_away_cannot_change_it(self):
        limiter = Limiter(ARM, DT, np.zeros(1))
        limiter.brake()[:] = 7.0
        limiter.position[:] = 7.0
        assert limiter.position[0] == 0.0

    @pytest.mark.parametrize("start", [[0.6], [math.nan], [math.inf], [0.0, 0.0], 0.0])
    def test_a_start_outside_is_refused(self, start):
        with pytest.raises(ValueError, match="outside|shape"):
            Limiter(ARM, DT, np.array(start))


NAMES = ["x", "grip"]
CONFIG = SafetyConfig(
    waypoint=LimitsConfig([-0.5, 0.0], [0.5, 1.0], [0.6, 5.0], [8.0, 60.0], [400.0, 3000.0]),
    lead=[0.05, math.inf],
    max_jump=[0.1, math.inf],
)


class Bench:
    """Safety in virtual time: 100 setpoints a second, and a note of all that happens."""

    def __init__(self, cfg: SafetyConfig = CONFIG, start: tuple[float, float] = (0.0, 0.5)):
        self.events: list[Intervention] = []
        self.safety = Safety(cfg, NAMES, ["grip"], 1 / DT, self.events.append)
        self.cycle, self.cfg = 0, cfg
        self.row = [np.array(start)] * 3
        self.safety.reset(0.0, np.array(start))

    @property
    def now_s(self) -> float:
        return self.cycle * DT

    def plan(self, number: int = 1, n: int = 10, step: float = 0.02, age_s: float = 0.0, grip: float = 1.0) -> Plan:
        """n waypoints 0.1 s apart, the first 0.1 s from now, `step` apart in x from the present setpoint."""
        times = self.now_s + 0.1 * np.arange(1, n + 1)
        x = self.safety.limiter.position[0] + step * np.arange(1, n + 1)
        return Plan(number, self.now_s - age_s, times, np.stack([x, np.full(n, grip)], axis=1))

    def offer(self, plan: Plan) -> str:
        return self.safety.offer(plan, self.now_s)

    def run(self, seconds: float, beat: bool = True, measured: object = None) -> None:
        for _ in range(round(seconds / DT)):
            if beat:
                self.safety.beat(self.now_s)
            self.row.append(self.safety.setpoint(self.now_s, measured))
            self.cycle += 1
        assert max(shares(self.row, self.cfg.waypoint, DT).values()) <= 1 + 1e-9

    def is_still(self) -> bool:
        return not self.safety.limiter.velocity.any()


def with_(**fields):
    """A way to spoil a plan: sets its fields."""

    def spoil(plan: Plan) -> None:
        for key, value in fields.items():
            setattr(plan, key, value(getattr(plan, key)) if callable(value) else value)

    return spoil


class Poison:
    """Raises whatever is done with it."""

    def __getattribute__(self, name):
        raise KeyError(name)

    def __le__(self, other):
        raise KeyError("compared")


REFUSALS = {
    "number of a wrong type": ("malformed", with_(number="3")),
    "number a float": ("malformed", with_(number=3.0)),
    "number a truth": ("malformed", with_(number=True)),
    "number huge": ("malformed", with_(number=10**400)),
    "observation at a huge integer": ("malformed", with_(observed_at_s=10**400)),
    "observation at None": ("malformed", with_(observed_at_s=None)),
    "observation at text": ("malformed", with_(observed_at_s="now")),
    "times a list": ("malformed", with_(times_s=lambda t: t.tolist())),
    "times None": ("malformed", with_(times_s=None)),
    "times too few": ("malformed", with_(times_s=lambda t: t[1:])),
    "times two-dimensional": ("malformed", with_(times_s=lambda t: t[None])),
    "times equal": ("malformed", with_(times_s=np.ones_like)),
    "times falling": ("malformed", with_(times_s=lambda t: t[::-1])),
    "times a subnormal apart": ("malformed", with_(times_s=lambda t: 5e-324 * np.arange(len(t)))),
    "no waypoint": ("malformed", with_(times_s=np.zeros(0), waypoints=np.zeros((0, 2)))),
    "too many waypoints": ("malformed", with_(times_s=np.arange(1001.0), waypoints=np.zeros((1001, 2)))),
    "waypoints transposed": ("malformed", with_(waypoints=lambda w: w.T)),
    "waypoints of another robot": ("malformed", with_(waypoints=lambda w: w[:, :1])),
    "waypoints flat": ("malformed", with_(waypoints=lambda w: w[:, 0])),
    "waypoints objects": ("malformed", with_(waypoints=lambda w: w.astype(object))),
    "waypoints text": ("malformed", with_(waypoints=lambda w: w.astype(str))),
    "waypoints complex": ("malformed", with_(waypoints=lambda w: w.astype(complex))),
    "waypoints truths": ("malformed", with_(waypoints=lambda w: w > 0)),
    "waypoints that raise": ("malformed", with_(waypoints=lambda w: Poison())),
    "number that raises": ("malformed", with_(number=lambda n: Poison())),
    "waypoint NaN": ("not_finite", with_(waypoints=lambda w: np.where(w == w[3], math.nan, w))),
    "waypoint infinite": ("not_finite", with_(waypoints=lambda w: np.where(w == w[9], -math.inf, w))),
    "waypoint beyond float64": (
        "not_finite",
        with_(waypoints=lambda w: w.astype(np.longdouble) + np.longdouble("1e400")),
    ),
    "time NaN": ("not_finite", with_(times_s=lambda t: np.where(t == t[3], math.nan, t))),
    "time infinite": ("not_finite", with_(times_s=lambda t: np.where(t == t[9], math.inf, t))),
    "observation at NaN": ("not_finite", with_(observed_at_s=math.nan)),
    "same number": ("out_of_order", with_(number=5)),
    "older number": ("out_of_order", with_(number=4)),
    "negative number": ("out_of_order", with_(number=-(2**62))),
    "observation too old": ("stale", with_(observed_at_s=lambda s: s - 0.801)),
    "observation of the future": ("stale", with_(observed_at_s=lambda s: s + 0.002)),
    "observation at -1e308": ("stale", with_(observed_at_s=-1e308)),
    "all past": ("late", with_(times_s=lambda t: t - 1.001)),
    "all past by 1e308": ("late", with_(times_s=lambda t: -1e307 * np.arange(len(t), 0, -1))),
    "next waypoint far": ("jump", with_(waypoints=lambda w: w + [0.09, 0])),
    "next waypoint at 1e308": ("jump", with_(waypoints=lambda w: w + [1e308, 0])),
    "next waypoint far, first one late": (
        "jump",
        with_(times_s=lambda t: t - 0.15, waypoints=lambda w: w + np.array([0.0, 0.09] + [0.0] * 8)[:, None] * [1, 0]),
    ),
}


class TestOffer:
    @pytest.mark.parametrize(("kind", "spoil"), REFUSALS.values(), ids=REFUSALS)
    def test_a_refused_plan_leaves_only_a_note(self, kind, spoil):
        bench, twin = Bench(), Bench()
        for each in (bench, twin):
            assert each.offer(each.plan(5)) == ""
            each.run(0.2)
        plan = bench.plan(6)
        spoil(plan)
        assert bench.offer(plan) == kind
        assert bench.safety.interventions == {kind: 1}
        assert [event.kind for event in bench.events] == [kind]
        assert bench.safety.last is bench.events[0]
        assert bench.events[0].detail
        assert bench.safety.plan == 5
        bench.run(0.3)
        twin.run(0.3)
        np.testing.assert_array_equal(bench.row, twin.row)

    def test_what_is_no_plan_is_malformed(self):
        for plan in (None, 3, "plan", object(), Plan, Poison()):
            assert Bench().offer(plan) == "malformed"

    def test_after_a_stop_every_plan_is_refused(self):
        bench = Bench()
        bench.safety.stop(0.0, "a person")
        assert bench.offer(bench.plan(1)) == "stopped"
        assert bench.safety.last.detail == "plan 1: stopped (a person)"

    def test_details_name_what_was_asked_and_the_limit(self):
        bench = Bench()
        plan = bench.plan(1)
        plan.waypoints[0, 0] = 0.25
        bench.offer(plan)
        assert bench.safety.last.detail == "plan 1, waypoint 0: x=0.25 is 0.25 from the setpoint 0; at most 0.1"
        plan = bench.plan(2)
        plan.waypoints[4, 0] = math.nan
        bench.offer(plan)
        assert bench.safety.last.detail == "plan 2: waypoint 4: x=nan"
        plan = bench.plan(3)
        plan.waypoints[7, 1] = 1.5
        assert bench.offer(plan) == ""
        assert bench.safety.last.detail == "plan 3, waypoint 7: grip=1.5; 0 to 1"

    def test_the_start_up_check_is_the_jump(self):
        bench = Bench()
        plan = bench.plan(1)
        plan.waypoints[:, 0] = 0.101
        assert bench.offer(plan) == "jump"
        plan.waypoints[:, 0] = 0.099
        assert bench.offer(plan) == ""

    def test_a_waypoint_outside_is_moved_to_the_border_and_counted_once_a_plan(self):
        bench = Bench(start=(0.45, 0.5))
        plan = bench.plan(1, step=0.02)
        plan.waypoints[4:, 0] = 1e308
        assert bench.offer(plan) == ""
        assert bench.safety.interventions == {"workspace": 1}
        bench.run(1.0)
        assert 0.5 - 1e-6 < bench.row[-1][0] <= 0.5

    @pytest.mark.parametrize(("opening", "counted"), [(1.019, {}), (-0.019, {}), (1.021, {"workspace": 1})])
    def test_a_gripper_told_a_little_more_than_open_is_clipped_and_not_counted(self, opening, counted):
        bench = Bench()
        plan = bench.plan(1)
        plan.waypoints[:, 1] = opening
        assert bench.offer(plan) == "" and bench.safety.interventions == counted
        bench.run(1.0)
        assert 0 <= min(row[1] for row in bench.row) and max(row[1] for row in bench.row) <= 1

    def test_a_plan_that_is_partly_late_is_followed_from_where_it_is(self):
        bench = Bench()
        plan = bench.plan(1)
        plan.times_s -= 0.35
        assert bench.offer(plan) == ""
        assert not bench.safety.interventions
        bench.run(0.8)
        assert abs(bench.row[-1][0] - 0.2) < 1e-9

    def test_plans_of_other_number_types_are_plans(self):
        bench = Bench()
        plan = bench.plan(1)
        plan.number, plan.observed_at_s = np.int64(1), np.float32(0)
        plan.waypoints, plan.times_s = plan.waypoints.astype(np.float16), plan.times_s.astype(np.longdouble)
        assert bench.offer(plan) == ""

    def test_the_plan_may_be_changed_after_it_was_offered(self):
        bench, twin = Bench(), Bench()
        plan = bench.plan(1)
        bench.offer(plan)
        twin.offer(copy.deepcopy(plan))
        plan.waypoints[:] = math.nan
        plan.times_s[:] = math.nan
        bench.run(0.5)
        twin.run(0.5)
        np.testing.assert_array_equal(bench.row, twin.row)

    def test_a_flood_is_counted_and_not_kept(self):
        safety = Safety(CONFIG, NAMES, ["grip"], 100.0)
        safety.reset(0.0, np.zeros(2))
        for _ in range(2000):
            safety.offer(None, 0.0)
        assert safety.interventions == {"malformed": 2000}


class TestSetpoint:
    def test_a_plan_is_followed_to_its_last_waypoint(self):
        bench = Bench()
        assert (bench.safety.state, bench.safety.reason, bench.safety.plan) == ("holding", "no plan yet", -1)
        bench.offer(bench.plan(1, step=0.04))  # 0.4 m/s
        bench.run(0.01)
        assert (bench.safety.state, bench.safety.reason, bench.safety.plan) == ("moving", "", 1)
        bench.run(1.39)
        assert (bench.safety.state, bench.safety.reason) == ("holding", "plan ended")
        x = np.array(bench.row)[3:, 0]
        assert abs(x[-1] - 0.4) < 1e-9
        assert x.max() <= 0.4 + 1e-9, "it slows down in time"
        asked = np.minimum(0.4 * DT * np.arange(1, len(x) + 1), 0.4)
        assert np.abs(x - asked)[25:90].max() < 1e-6
        assert np.abs(x - asked).max() < 0.015
        assert not bench.safety.interventions

    def test_a_gripper_goes_at_once(self):
        bench = Bench()
        bench.offer(bench.plan(1, grip=0.0))
        bench.run(0.3)
        assert bench.row[-1][1] < 1e-6

    def test_before_the_first_plan_it_waits_for_as_long_as_it_takes(self):
        bench = Bench()
        bench.run(3.0, beat=False)
        assert (bench.safety.state, bench.safety.reason) == ("holding", "no plan yet")
        np.testing.assert_array_equal(bench.row[-1], [0.0, 0.5])
        bench.offer(bench.plan(1))
        bench.run(0.3)
        assert bench.safety.state == "moving"
        assert not bench.safety.interventions

    def test_silence_holds_within_a_cycle_and_a_beat_ends_it(self):
        bench = Bench()
        bench.offer(bench.plan(1, n=14))
        bench.run(0.11, beat=False)
        assert bench.safety.state == "moving"
        bench.run(0.01, beat=False)
        assert (bench.safety.state, bench.safety.reason) == ("holding", "nothing heard for 0.1 s")
        bench.run(0.3, beat=False)
        assert bench.is_still()
        held = bench.row[-1][0]
        bench.run(0.5)
        assert (bench.safety.state, bench.safety.reason) == ("moving", "")
        assert bench.row[-1][0] > held
        assert bench.safety.interventions == {"silence": 1}
        bench.run(0.7)
        assert abs(bench.row[-1][0] - 0.28) < 1e-6, "it still ends on the last waypoint"

    def test_after_a_hold_a_plan_that_went_far_is_not_chased(self):
        bench = Bench()
        bench.offer(bench.plan(1, n=12, step=0.04))
        bench.run(0.7, beat=False)
        bench.run(0.1)
        assert (bench.safety.state, bench.safety.last.kind) == ("holding", "jump")
        assert bench.is_still()
        assert bench.safety.interventions == {"silence": 1, "jump": 1}
        assert bench.offer(bench.plan(2)) == ""
        bench.run(0.1)
        assert bench.safety.state == "moving"

    def test_an_offer_is_a_beat_even_if_it_is_refused(self):
        bench = Bench()
        bench.offer(bench.plan(1))
        for _ in range(50):
            bench.offer(None)
            bench.run(DT, beat=False)
        assert bench.safety.state == "moving"

    def test_a_plan_grows_old(self):
        bench = Bench()
        bench.offer(bench.plan(1, n=30, step=0.01, age_s=0.5))
        bench.run(1.0)
        assert bench.safety.state == "moving"
        bench.run(0.02)
        assert (bench.safety.state, bench.safety.last.kind) == ("holding", "age")
        assert bench.safety.reason == "the plan's observation is older than 1.5 s"
        bench.offer(bench.plan(2))
        bench.run(0.02)
        assert bench.safety.state == "moving"
        assert bench.safety.interventions == {"age": 1}

    def test_the_watchdog_stops_for_good(self):
        bench = Bench()
        bench.offer(bench.plan(1, n=20))
        bench.run(0.11 + 1.0, beat=False)
        assert bench.safety.state == "holding"
        bench.run(0.02, beat=False)
        assert bench.safety.state == "stopped"
        assert bench.safety.reason == "held for 1 s: nothing heard for 0.1 s"
        assert bench.safety.interventions == {"silence": 1, "watchdog": 1}
        assert bench.offer(bench.plan(2)) == "stopped"
        bench.run(0.5)
        assert bench.safety.state == "stopped"
        assert bench.is_still()

    def test_a_hold_that_is_interrupted_starts_the_watchdog_anew(self):
        bench = Bench()
        for number in range(1, 5):
            bench.offer(bench.plan(number, n=2))
            bench.run(1.1)
            assert (bench.safety.state, bench.safety.reason) == ("holding", "plan ended")
        bench.run(0.2)
        assert bench.safety.state == "stopped"

    def test_the_watchdog_counts_from_the_first_plan(self):
        bench = Bench()
        bench.run(5.0)
        bench.offer(bench.plan(1))
        bench.run(0.9, measured=[math.nan, 0.0])
        assert (bench.safety.state, bench.safety.last.kind) == ("holding", "measured")
        bench.run(0.2, measured=[math.nan, 0.0])
        assert bench.safety.state == "stopped"

    def test_a_stop_brakes_at_once_and_keeps_the_first_reason(self):
        bench = Bench()
        bench.offer(bench.plan(1, step=0.05))
        bench.run(0.5)
        assert bench.safety.limiter.velocity[0] > 0.4
        bench.safety.stop(bench.now_s, "a person")
        bench.safety.stop(bench.now_s, "another")
        assert (bench.safety.state, bench.safety.reason) == ("stopped", "a person")
        assert bench.safety.interventions == {"stop": 1}
        bench.run(float(bench.safety.limiter.braking_s.max()) + DT)
        assert bench.is_still()

    @pytest.mark.parametrize(
        "measured", [[math.nan, 0.5], [0.0, math.inf], [0.0], "there", [[0.0, 0.5]], object(), [10**400, 0]]
    )
    def test_a_measured_pose_that_is_none_holds(self, measured):
        bench = Bench()
        bench.offer(bench.plan(1))
        bench.run(0.2, measured=[0.0, 0.5])
        bench.run(0.2, measured=measured)
        assert bench.safety.state == "holding"
        assert bench.safety.reason == "the measured pose is not 2 finite numbers"
        assert bench.safety.interventions == {"measured": 1}
        bench.run(0.2, measured=bench.row[-1])
        assert bench.safety.state == "moving"

    def test_a_blocked_arm_is_waited_for(self):
        bench = Bench()
        bench.offer(bench.plan(1, step=0.04))
        bench.run(0.9, measured=[0.0, 0.5])
        assert abs(bench.row[-1][0] - 0.05) < 1e-6, "no further than `lead` from the measured pose"
        assert bench.row[-1][1] > 0.999, "the gripper has no lead"
        assert bench.safety.interventions == {"lead": 1}
        assert bench.safety.last.detail.startswith("x: asked 0.05")
        bench.offer(bench.plan(2, step=0.01))
        bench.run(0.3, measured=bench.row[-1])
        bench.run(0.3, measured=[-0.3, 0.5])
        assert bench.safety.interventions == {"lead": 2}, "one count for each run of cycles"

    def test_reset_clears_all(self):
        bench = Bench()
        bench.offer(bench.plan(7))
        bench.offer(None)
        bench.run(0.3)
        bench.safety.stop(bench.now_s, "a person")
        bench.safety.reset(bench.now_s, np.array([0.1, 0.2]))
        bench.row = [np.array([0.1, 0.2])] * 3
        safety = bench.safety
        assert (safety.state, safety.reason, safety.plan, safety.last) == ("holding", "no plan yet", -1, None)
        assert not safety.interventions
        bench.run(0.5)
        np.testing.assert_array_equal(bench.row[-1], [0.1, 0.2])
        assert bench.offer(bench.plan(1)) == ""

    def test_a_start_outside_the_workspace_is_refused_by_name(self):
        bench = Bench()
        bench.offer(bench.plan(7))
        with pytest.raises(ValueError, match=r"grip=1\.2 is outside 0 to 1"):
            bench.safety.reset(0.0, np.array([0.0, 1.2]))
        assert bench.safety.plan == 7

    def test_there_is_no_setpoint_before_an_episode(self):
        safety = Safety(CONFIG, NAMES, ["grip"], 100.0)
        assert safety.state == "stopped"
        assert safety.offer(Plan(1, 0.0, np.ones(1), np.zeros((1, 2))), 0.0) == "stopped"
        with pytest.raises(RuntimeError, match="reset"):
            safety.setpoint(0.0)


def test_every_kind_that_happens_is_explained():
    source = (ROOT / "padpolicy/control/safety.py").read_text()
    for kind, sentence in KINDS.items():
        assert source.count(f'"{kind}"') >= 2, f"{kind} never happens"
        assert sentence.endswith(".")


WRONG = {
    "waypoint.low": (dict(low=[0.0]), "robot.safety.waypoint.low has 1 numbers; expected 2: x, grip"),
    "waypoint.high": (dict(high=[0.5, math.nan]), "robot.safety.waypoint.high=.*grip is nan"),
    "low above high": (dict(low=[0.5, 0.0]), "robot.safety.waypoint.low=.*x is 0.5, not below"),
    "waypoint.velocity": (dict(velocity=[0.0, 1.0]), "robot.safety.waypoint.velocity=.*x is 0.0; .*above 0"),
    "waypoint.jerk": (dict(jerk=[math.inf, 1.0]), "robot.safety.waypoint.jerk=.*x is inf"),
    "lead": (dict(lead=[0.1]), "robot.safety.lead has 1 numbers"),
    "max_jump missing": (dict(max_jump=[]), "robot.safety.max_jump has 0 numbers"),
    "max_jump": (dict(max_jump=[-1.0, 1.0]), "robot.safety.max_jump=.*x is -1.0"),
    "silence": (dict(silence_s=0.0), "robot.safety.silence_s=0.0"),
    "watchdog": (dict(watchdog_s=math.nan), "robot.safety.watchdog_s=nan"),
    "joint": (dict(joint=LimitsConfig(low=[0.0])), "robot.safety.joint.high has 0 numbers; expected 1"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_named(change, message):
    cfg = copy.deepcopy(CONFIG)
    for key, value in change.items():
        setattr(cfg.waypoint if hasattr(cfg.waypoint, key) else cfg, key, value)
    with pytest.raises(ConfigError, match=message):
        check_config(cfg, NAMES)
    with pytest.raises(ConfigError, match=message):
        Safety(cfg, NAMES, ["grip"], 100.0)


def test_hostile_plans_move_nothing_out_of_its_limits():
    spec = importlib.util.spec_from_file_location("hostile_plans", ROOT / "scripts/hostile_plans.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    referee, counts, accepted = script.run(1500, seed=1)
    assert referee.violations == 0
    assert accepted > 200
    assert referee.share["jerk"] > 0.99, "the limits were reached, so the check saw them"
    assert {"malformed", "not_finite", "stale", "late", "jump", "out_of_order", "workspace", "lead"} <= counts.keys()
