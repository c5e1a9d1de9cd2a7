"""Arms that LeRobot drives: what becomes of their features, what reaches them, what is refused before they move."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from padpolicy import config
from padpolicy.config import ConfigError, LimitsConfig, RobotConfig, SafetyConfig
from padpolicy.control.robot import Plan
from padpolicy.control.robots.lerobot import LeRobotArm, from_options
from padpolicy.control.robots.process import RobotError, RobotProcess
from padpolicy.control.robots.side import Side, make_arm


class Elbow:
    """Two joints and a gripper that reach what they are told at once, a colour and a depth camera of 4 x 6 pixels."""

    name = "elbow"
    action_features = {"shoulder.pos": float, "elbow.pos": float, "gripper.pos": float}
    observation_features = {
        "elbow.pos": float,
        "elbow.vel": float,
        "top": (4, 6, 3),
        "shoulder.pos": float,
        "gripper.pos": float,
        "top_depth": (4, 6, 1),
    }
    is_calibrated = True

    def __init__(self, most: float = np.inf, breaks_after: int = 10**9, lost: float = 0.0, **features):
        self.at = {"shoulder.pos": 10.0, "elbow.pos": -20.0, "gripper.pos": 30.0}
        self.most, self.breaks_after, self.lost = most, breaks_after, lost
        self.is_connected = False
        self.sent: list[dict[str, float]] = []
        self.reads, self.threads = 0, set()
        self.buffer = np.zeros((4, 6, 3), np.uint8)
        self.change: dict = {}  # of the next observations
        for name, value in features.items():
            setattr(self, name, value)

    def connect(self, calibrate=True):
        assert not calibrate
        self.is_connected = True

    def disconnect(self):
        self.is_connected = False

    def get_observation(self):
        self.threads.add(threading.get_ident())
        self.reads += 1
        if self.reads > self.breaks_after:
            if self.lost:
                return {**self._values(), "elbow.pos": self.lost}
            raise ConnectionError("no status packet")
        return self._values()

    def _values(self):
        self.buffer[:] = self.reads
        depth = np.full((4, 6, 1), 500 + self.reads, np.uint16)
        return {**self.at, "elbow.vel": 0.5, "top": self.buffer, "top_depth": depth, "extra": 1, **self.change}

    def send_action(self, action):
        self.threads.add(threading.get_ident())
        assert self.is_connected
        self.sent.append(action)
        self.at = {name: float(np.clip(value, -self.most, self.most)) for name, value in action.items()}
        return dict(self.at)


class Uncalibrated(Elbow):
    @property
    def is_calibrated(self):
        if not self.is_connected:
            raise ConnectionError("connect first")
        return False


def make(**options):
    return Elbow(**options)


def uncalibrated():
    return Uncalibrated()


def nothing():
    return object()


LIMITS = LimitsConfig(
    low=[-90, -90, 0], high=[90, 90, 100], velocity=[50, 50, 200], acceleration=[400] * 3, jerk=[8000] * 3
)
SAFETY = SafetyConfig(waypoint=LIMITS, max_jump=[40] * 3)


def cfg(**changes) -> RobotConfig:
    settings = dict(kind="lerobot", make=f"{__name__}:make", safety=SAFETY, servo_hz=50, camera_hz=10)
    return RobotConfig(**{**settings, **changes})


def test_features_become_a_waypoint_pictures_and_proprio():
    arm = make_arm(cfg())
    assert arm.names == ["shoulder.pos", "elbow.pos", "gripper.pos"]
    assert arm.grippers == ["gripper.pos"]
    assert arm.cameras == {"top": (4, 6)} and arm.depth_cameras == ["top"] and arm.proprio_dim == 4
    assert arm.reset({"seed": 3}).tolist() == [10, -20, 30]  # in the order of actions
    seen = arm.look()
    assert list(seen) == ["proprio", "rgb_top", "depth_top"]
    assert seen["proprio"].dtype == np.float32 and seen["proprio"].tolist() == [-20, 0.5, 10, 30]  # of observations
    assert seen["rgb_top"].shape == (4, 6, 3) and (seen["rgb_top"] == 2).all()
    assert seen["depth_top"].shape == (4, 6) and (seen["depth_top"] == 502).all()
    assert seen["depth_top"].dtype == np.uint16
    arm.look()
    assert (seen["rgb_top"] == 2).all()  # though the driver uses its buffer again
    arm.close()
    assert not arm._robot.is_connected


def test_names_can_be_given():
    arm = make_arm(
        cfg(
            cameras={"top": "front", "top_depth": "front"},
            grippers=["elbow.pos"],
            proprio=["gripper.pos", "shoulder.pos"],
        )
    )
    arm.reset({})
    assert arm.cameras == {"front": (4, 6)} and arm.depth_cameras == ["front"] and arm.grippers == ["elbow.pos"]
    seen = arm.look()
    assert seen["proprio"].tolist() == [30, 10] and {"rgb_front", "depth_front"} <= set(seen)
    assert arm.measured().tolist() == [10, -20, 30]  # what is commanded is measured, felt or not


def test_an_opening_that_nobody_measures_is_what_was_commanded():
    observed = {name: kind for name, kind in Elbow.observation_features.items() if name != "gripper.pos"}
    arm = make_arm(cfg(options={"observation_features": observed}))
    assert arm.reset({}).tolist() == [10, -20, 100]
    arm.write(np.array([11.0, -21.0, 40.0]), np.zeros(0), 0.02)
    assert arm.measured().tolist() == [10, -20, 40]
    assert arm.reset({}).tolist() == [11, -21, 40]


def test_what_the_robot_changes_is_counted_and_told(capsys):
    arm = make_arm(cfg(options={"most": 25.0}))
    arm.reset({})
    arm.write(np.array([20.0, -25.1, 25.0]), np.zeros(0), 0.02)  # 0.1 of 180 is not worth a word
    assert arm.info() == {"clipped": 0, "last_clip": ""}
    arm.write(np.array([20.0, -26.0, 25.0]), np.zeros(0), 0.02)
    arm.write(np.array([20.0, -27.0, 25.0]), np.zeros(0), 0.02)
    assert arm.info() == {"clipped": 2, "last_clip": "elbow.pos: asked -27, sent -25"}
    assert capsys.readouterr().err.count("elbow.pos: asked -26, sent -25") == 1
    arm.reset({})
    assert arm.info()["clipped"] == 0


def without(name):
    return {key: kind for key, kind in Elbow.observation_features.items() if key != name}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"make": ""}, "robot.make=… is missing"),
        ({"make": f"{__name__}:nobody"}, "expected package.module:function"),
        ({"make": f"{__name__}:nothing"}, "returned a object without action_features, .*disconnect: no Robot"),
        ({"options": {"action_features": {"elbow.pos": float, "x.vel": float}}}, "commanded by x.vel; only posi"),
        ({"options": {"action_features": {"elbow.pos": (3,)}}}, r"'elbow.pos' is \(3,\); expected float"),
        ({"options": {"action_features": {}}}, "expected numbers"),
        ({"options": {"observation_features": without("elbow.pos")}}, "does not say where elbow.pos is"),
        ({"options": {"observation_features": without("top")}}, "depth of 'top' belongs to no colour camera"),
        ({"options": {"observation_features": {**Elbow.observation_features, "b": (4, 6, 3)}}, "cameras": {"b": "top"}},
         "two pictures of elbow are called 'top'"),
        ({"cameras": {"bottom": "front"}}, "has no 'bottom'; it has top, top_depth"),
        ({"grippers": ["hand"]}, "robot.grippers: the robot has no 'hand'"),
        ({"proprio": ["hand"]}, "robot.proprio: the robot has no 'hand'; it has elbow.pos, elbow.vel"),
        ({"safety": SafetyConfig()}, r"robot.safety.waypoint.low has 0 numbers; expected 3: .*docs/lerobot.md"),
    ],
)  # fmt: skip
def test_what_cannot_be_driven_is_refused_before_it_is_connected_to(changes, message, monkeypatch):
    monkeypatch.setattr(Elbow, "connect", lambda self, calibrate: pytest.fail("connected"))
    with pytest.raises(ConfigError, match=message):
        make_arm(cfg(**changes))


def test_an_arm_that_is_not_calibrated_is_let_go():
    made = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match="elbow is not calibrated"):
        patch.setattr(Uncalibrated, "disconnect", lambda self: made.append(self))
        make_arm(cfg(make=f"{__name__}:uncalibrated"))
    assert len(made) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"elbow.pos": np.nan}, "elbow: elbow.pos was measured as nan"),
        ({"elbow.vel": np.inf}, "elbow: elbow.vel was measured as inf"),
        ({"top": np.zeros((6, 4, 3), np.uint8)}, r"top came as uint8\(6, 4, 3\); expected uint8\(4, 6, 3\)"),
        ({"top": np.zeros((4, 6, 3))}, "top came as float64"),
        ({"top_depth": np.zeros((4, 6), np.float32)}, "top_depth came as float32"),
    ],
)
def test_an_observation_that_is_not_as_announced_is_an_error(change, message):
    arm = make_arm(cfg())
    arm.reset({})
    arm._robot.change = change
    with pytest.raises(RuntimeError, match=message):
        arm.look()


def test_a_lost_connection_and_a_missing_value_are_errors_that_say_so():
    arm = make_arm(cfg(options={"breaks_after": 1}))
    arm.reset({})
    with pytest.raises(RuntimeError, match="elbow cannot be read: ConnectionError: no status packet"):
        arm.look()
    arm = make_arm(cfg(options={"at": {"shoulder.pos": 0.0, "gripper.pos": 0.0}}))
    with pytest.raises(RuntimeError, match="an observation came without elbow.pos; it has shoulder.pos"):
        arm.reset({})


def test_what_is_not_finite_is_not_sent():
    arm = make_arm(cfg())
    arm.reset({})
    with pytest.raises(RuntimeError, match="not finite. Nothing was sent"):
        arm.write(np.array([0, np.nan, 0]), np.zeros(0), 0.02)
    assert arm._robot.sent == []


def test_safety_leads_it_and_a_robot_without_a_plan_is_sent_nothing():
    arm = make_arm(cfg())
    side = Side(arm, cfg())
    side.reset(100.0, {})
    for i in range(1, 26):  # half a second without a plan
        side.advance(100.0 + i / 50)
    assert arm._robot.sent == []
    assert arm._robot.reads == 2 + 5  # at the reset, and at 10 Hz
    side.offer(Plan(0, side.now_s, np.array([101.0, 101.5]), np.array([[20.0, -30.0, 60.0], [25.0, -500.0, 60.0]])))
    for i in range(26, 100):
        side.safety.beat(side.now_s)
        side.advance(100.0 + i / 50)
    sent = np.array([list(action.values()) for action in arm._robot.sent])
    assert all(list(action) == arm.names for action in arm._robot.sent)
    assert 70 <= len(sent) <= 74  # each cycle from the first that moves it
    assert (sent >= LIMITS.low).all() and (sent <= LIMITS.high).all()
    speed = np.abs(np.diff(np.vstack([[10, -20, 30], sent]), axis=0)) * 50
    assert (speed <= np.array(LIMITS.velocity) * (1 + 1e-9)).all() and speed.max() > 10
    assert sent[:, 2].max() == pytest.approx(60) and sent[-1, 0] == pytest.approx(25, abs=0.1)
    assert arm._robot.threads == {threading.get_ident()}
    assert side.status().info == {"clipped": 0, "last_clip": ""}


@pytest.mark.parametrize(
    "lost, message", [(0.0, "ConnectionError: no status packet"), (float("nan"), "elbow.pos was measured as nan")]
)
def test_a_robot_that_is_lost_ends_its_process_with_the_reason(lost, message):
    robot = RobotProcess(cfg(make="control.test_lerobot:make", options={"breaks_after": 4, "lost": lost}))
    try:
        with pytest.raises(RobotError, match=message):
            robot.reset()
            for _ in range(400):
                robot.beat()
                robot.status()
                threading.Event().wait(0.05)
    finally:
        robot.close()


def test_the_shipped_configuration_wants_limits_and_says_how_to_get_them():
    shipped = config.load("deploy", ["robot=lerobot", "checkpoint=tabletop", "out=x"]).robot
    assert (shipped.kind, shipped.make) == ("lerobot", f"{from_options.__module__}:from_options")
    shipped.make = f"{__name__}:make"
    with pytest.raises(ConfigError, match="low has 0 numbers.*docs/lerobot.md"):
        make_arm(shipped)


def test_without_lerobot_its_own_robots_are_an_error_that_says_what_to_install(monkeypatch):
    for name in ("lerobot", "draccus"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="needs LeRobot .*pip install"):
        from_options(type="so101_follower", port="/dev/ttyACM0")


def test_neither_lerobot_nor_torch_is_imported():
    code = (
        "import sys, padpolicy.control.robots.lerobot as ours\n"
        "print(sorted({'torch', 'lerobot', 'draccus'} & set(sys.modules)), ours.LeRobotArm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {LeRobotArm.__name__}"
