"""Any arm that LeRobot drives, under our safety: the arm is an object with LeRobot's `Robot` interface.

A waypoint is the robot's action features in their order, in the robot's own units. LeRobot itself is imported only by
`from_options`, so an object that somebody else makes needs to have the interface, and nothing more.

Letters: D numbers of a waypoint, P proprio dims.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from padpolicy.config import ConfigError, RobotConfig
from padpolicy.control.robots.named import named
from padpolicy.control.safety import check_config

_NO_POSITION = re.compile(r"(^|[._])(vel|velocity|vx|vy|vtheta|torque|effort|delta)([._]|$)")


class LeRobotArm:
    """An `Arm` around a LeRobot `Robot`. Every call to the robot is made by the thread that calls here.

    The interface has no way to read motors without cameras, so both are read together, once per observation: `measured`
    is as old as the newest one, and `lead` is held to that.

    Nothing is sent before the setpoint leaves where the arm stood at the reset: a dry run sends nothing at all.

    Args:   cfg: `make` and `options` give the robot; `cameras`, `grippers`, `proprio` say what its features are to us.
    Raises: ConfigError if the robot cannot be driven as `cfg` says, before it is connected to; or if it is not
            calibrated.
    """

    joints: Sequence[str] = ()
    renderer = ""
    simulated = False

    def __init__(self, cfg: RobotConfig):
        if not cfg.make:
            raise ConfigError("robot.make=… is missing: package.module:function that returns LeRobot's Robot.")
        self._robot = robot = named(cfg.make)(**cfg.options)
        self._is = str(getattr(robot, "name", type(robot).__name__))
        lacking = [name for name in _NEEDED if name not in dir(robot)]  # hasattr would ask, and some need a connection
        if lacking:
            raise ConfigError(f"{cfg.make} returned a {type(robot).__name__} without {', '.join(lacking)}: no Robot.")
        self.names = list(robot.action_features)
        observed, shapes = _split(robot.observation_features)
        self._read_action_features(robot.action_features)
        self._felt = _chosen("proprio", cfg.proprio, list(observed)) or list(observed)
        self._numbers = list(dict.fromkeys([*self._felt, *(name for name in self.names if name in observed)]))
        self.proprio_dim = len(self._felt)
        self.grippers = _chosen("grippers", cfg.grippers, self.names) or [n for n in self.names if "gripper" in n]
        self._read_cameras(cfg.cameras, shapes)
        if blind := [name for name in self.names if name not in observed and name not in self.grippers]:
            raise ConfigError(f"{self._is} does not say where {blind[0]} is, so it cannot be led from there.")
        try:
            check_config(cfg.safety, self.names)
        except ConfigError as error:
            raise ConfigError(f"{error} docs/lerobot.md says how to measure them.") from None
        self._unread = dict(zip(self.names, cfg.safety.waypoint.high, strict=True))  # openings that nobody measures
        reach = np.array(cfg.safety.waypoint.high) - np.array(cfg.safety.waypoint.low)
        self._tolerance = 1e-3 * reach
        self._connect()

    def _connect(self) -> None:
        robot = self._robot
        if not robot.is_connected:
            robot.connect(calibrate=False)  # calibrating asks questions, and nobody can answer in a robot's process
        if not robot.is_calibrated:
            robot.disconnect()
            raise ConfigError(
                f"{self._is} is not calibrated. Do that first: lerobot-calibrate --robot.type=… --robot.id=…"
            )

    def _read_action_features(self, features: Mapping[str, Any]) -> None:
        numbers, shapes = _split(features)
        if shapes or not numbers:
            raise ConfigError(
                f"{self._is}: action_features are {dict(features)}; expected numbers, such as 'elbow.pos'."
            )
        if wrong := [name for name in numbers if _NO_POSITION.search(name)]:
            raise ConfigError(
                f"{self._is} is also commanded by {', '.join(wrong)}; only positions can be held, braked and kept "
                "inside limits. Give a Robot that takes positions only."
            )

    def _read_cameras(self, ours: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        if unknown := sorted(set(ours) - set(shapes)):
            raise ConfigError(f"robot.cameras: {self._is} has no {unknown[0]!r}; it has {', '.join(shapes) or 'none'}.")
        self.cameras: dict[str, tuple[int, int]] = {}
        self.depth_cameras: list[str] = []
        self._pictures: dict[str, tuple[str, tuple[int, ...]]] = {}  # feature -> field, shape that LeRobot gives
        for feature, (height, width, channels) in shapes.items():
            depth = channels == 1
            name = ours.get(feature, feature.removesuffix("_depth") if depth else feature)
            if any(field == f"{'depth' if depth else 'rgb'}_{name}" for field, _ in self._pictures.values()):
                raise ConfigError(f"robot.cameras: two pictures of {self._is} are called {name!r}.")
            self._pictures[feature] = f"{'depth' if depth else 'rgb'}_{name}", (height, width, channels)
            if depth:
                self.depth_cameras.append(name)
            else:
                self.cameras[name] = height, width
        if alone := sorted(set(self.depth_cameras) - set(self.cameras)):
            raise ConfigError(
                f"{self._is}: depth of {alone[0]!r} belongs to no colour camera. Give it the name of one: "
                f"robot.cameras={{FEATURE: NAME}}; colour: {', '.join(self.cameras) or 'none'}."
            )

    def reset(self, options: Mapping[str, Any]) -> np.ndarray:
        """Reads where the arm stands (D,); moves nothing. An opening that nobody measures starts at its upper limit.

        Raises:  RuntimeError if the arm cannot be read.
        """
        self._commanded = dict(getattr(self, "_commanded", self._unread))
        self._clipped, self._clip = 0, ""
        self._read()
        self._start: np.ndarray | None = self.measured()
        return self.measured()

    def measured(self) -> np.ndarray:
        """Where it was at the newest observation (D,); what was last commanded where it does not say."""
        seen = self._seen
        return np.array([seen[name] if name in seen else self._commanded[name] for name in self.names])

    def solve(self, setpoint: np.ndarray) -> np.ndarray:
        """Nothing: the setpoint is what the arm takes."""
        return np.zeros(0)

    def write(self, setpoint: np.ndarray, joints: np.ndarray, seconds: float) -> None:
        """Sends the setpoint. Raises RuntimeError if it cannot be sent, or is not finite."""
        if self._start is not None:
            if (np.abs(setpoint - self._start) <= 1e-6 * self._tolerance).all():
                return
            self._start = None
        if not np.isfinite(setpoint).all():
            raise RuntimeError(f"{self._is} was to be sent {setpoint}: not finite. Nothing was sent.")
        asked = dict(zip(self.names, setpoint.tolist(), strict=True))
        try:
            sent = {**asked, **(self._robot.send_action(dict(asked)) or {})}
        except Exception as error:
            raise RuntimeError(f"{self._is} took no command: {type(error).__name__}: {error}") from error
        self._commanded = {name: float(sent[name]) for name in self.names}
        short = np.abs(np.array(list(self._commanded.values())) - setpoint)
        if not (short <= self._tolerance).all():
            i = int(np.argmax(~(short <= self._tolerance)))
            name = self.names[i]
            self._clip = f"{name}: asked {setpoint[i]:.6g}, sent {self._commanded[name]:.6g}"
            if not self._clipped:
                print(f"{self._is} changes what it is told: {self._clip}. See docs/lerobot.md.", file=sys.stderr)
            self._clipped += 1

    def look(self) -> dict[str, np.ndarray]:
        """Reads motors and cameras, once.

        Returns: rgb_<cam> (H, W, 3) uint8, depth_<cam> (H, W) uint16 mm, proprio (P,) float32.
        Raises:  RuntimeError if the robot cannot be read, or does not give what its features say.
        """
        values = self._read()
        fields = {"proprio": np.array([self._seen[name] for name in self._felt], np.float32)}
        for feature, (field, shape) in self._pictures.items():
            picture = np.array(values[feature])  # a copy: a driver may use its buffer again
            dtype = np.uint16 if field.startswith("depth_") else np.uint8
            if shape[2] == 1 and picture.shape == shape[:2]:
                picture = picture[..., None]
            if picture.shape != shape or picture.dtype != dtype:
                raise RuntimeError(
                    f"{self._is}: {feature} came as {picture.dtype}{picture.shape}; expected {np.dtype(dtype)}{shape}."
                )
            fields[field] = picture[..., 0] if dtype == np.uint16 else picture
        return fields

    def _read(self) -> Mapping[str, Any]:
        """One observation, whose numbers are finite and are kept."""
        try:
            values = self._robot.get_observation()
        except Exception as error:
            raise RuntimeError(f"{self._is} cannot be read: {type(error).__name__}: {error}") from error
        if missing := [name for name in [*self._numbers, *self._pictures] if name not in values]:
            raise RuntimeError(
                f"{self._is}: an observation came without {', '.join(missing)}; it has {', '.join(values)}."
            )
        self._seen = {name: float(values[name]) for name in self._numbers}
        for name, value in self._seen.items():
            if not np.isfinite(value):
                raise RuntimeError(f"{self._is}: {name} was measured as {value}.")
        return values

    def info(self) -> dict[str, Any]:
        """`clipped`: setpoints of this episode that the robot changed by more than 0.1 % of their range; the last."""
        return {"clipped": self._clipped, "last_clip": self._clip}

    def close(self) -> None:
        """Disconnects. Whether the arm keeps its torque then is the robot's own setting."""
        if self._robot.is_connected:
            self._robot.disconnect()


_NEEDED = (
    *("action_features", "observation_features", "is_connected", "is_calibrated"),
    *("connect", "get_observation", "send_action", "disconnect"),
)


def _split(features: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Numbers, and shapes of pictures. Raises ConfigError for features that are neither."""
    numbers, shapes = {}, {}
    for name, kind in features.items():
        if isinstance(kind, type) and issubclass(kind, (float, int, np.number)):
            numbers[name] = kind
        elif isinstance(kind, (tuple, list)) and len(kind) == 3 and kind[2] in (1, 3):
            shapes[name] = tuple(kind)
        else:
            raise ConfigError(f"feature {name!r} is {kind!r}; expected float, (H, W, 3) or (H, W, 1).")
    return numbers, shapes


def _chosen(key: str, wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    if unknown := [name for name in wanted if name not in there]:
        raise ConfigError(f"robot.{key}: the robot has no {unknown[0]!r}; it has {', '.join(there)}.")
    return list(wanted)


def from_options(**options: Any) -> Any:
    """The robot that LeRobot makes of its own settings, as its commands take them: `type`, `port`, `id`, `cameras`, …

    Raises:  ConfigError if LeRobot is not installed, or knows no such robot or setting.
    """
    try:
        draccus = importlib.import_module("draccus")
        robots, cameras = (importlib.import_module(f"lerobot.{part}") for part in ("robots", "cameras"))
        plugins = importlib.import_module("lerobot.utils.import_utils")
    except ImportError as error:
        raise ConfigError(
            f"robot.make=…:from_options needs LeRobot beside padpolicy: pip install lerobot ({error})."
        ) from None
    for package in (robots, cameras):  # importing their packages is what makes their types known
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            if module.ispkg:
                importlib.import_module(module.name)
    plugins.register_third_party_plugins()
    known = robots.RobotConfig.get_known_choices()
    if options.get("type") not in known:
        raise ConfigError(f"robot.options.type={options.get('type')!r}: LeRobot knows {', '.join(sorted(known))}.")
    try:
        config = draccus.decode(robots.RobotConfig, options)
    except draccus.ParsingError as error:
        raise ConfigError(f"robot.options: {' '.join(str(error).split())}") from None
    return robots.make_robot_from_config(config)
