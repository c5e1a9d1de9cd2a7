"""What can be asked for: tasks, their wordings, the scenes they need and when they count as done.

A scene is plain data (`Scene`), sampled from (scene seed, name of the task it is made for); which other tasks it also
admits is read off it by `tasks_in`. Left and right are those of the front picture (y to the right), metres throughout.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from . import scene as geometry

FAMILIES = ("reach", "push", "lift", "place", "press", "drawer", "stack")

COLOURS = {
    "red": (0.86, 0.07, 0.07),
    "green": (0.08, 0.66, 0.16),
    "blue": (0.07, 0.22, 0.90),
    "yellow": (0.97, 0.85, 0.05),
    "purple": (0.58, 0.12, 0.74),
    "orange": (0.99, 0.47, 0.03),
}
OBJECTS = (
    "red cube",
    "green cube",
    "blue cube",
    "yellow cube",
    "red cylinder",
    "blue cylinder",
    "orange cylinder",
    "purple cylinder",
)
BUTTON_COLOURS = ("red", "green", "blue", "yellow")
DIRECTIONS = {"left": -1.0, "right": 1.0}  # sign of y

# Success, in metres. Generous, but no wording is fulfilled by chance or on the way to another.
TOUCH_XY, TOUCH_Z = 0.024, 0.012
PUSH_DISTANCE, PUSH_DRIFT = 0.07, 0.06
LIFT_HEIGHT = 0.09
DRAWER_OPEN, DRAWER_CLOSED = 0.075, 0.015
PRESS_DEPTH = 0.6 * geometry.BUTTON_TRAVEL

# Steps at 10 Hz: about two and a half times what the expert needs.
STEP_LIMITS = {"reach": 30, "push": 50, "lift": 45, "place": 70, "press": 35, "drawer": 50, "stack": 70}

# Wordings: index 0 is canonical, the last one is kept out of training. Its words occur in the others.
_WORDINGS = {
    "reach": (
        "touch the {object}",
        "tap the {object}",
        "reach for the {object}",
        "touch the top of the {object}",
        "reach to the {object} and tap it",
        "tap the top of the {object}",
    ),
    "push": (
        "push the {object} to the {side}",
        "slide the {object} to the {side}",
        "push the {object} {side}",
        "shove the {object} {side}",
        "shove the {object} over to the {side}",
        "slide the {object} over to the {side}",
    ),
    "lift": (
        "lift the {object}",
        "pick up the {object}",
        "raise the {object}",
        "grab the {object} and lift it up",
        "lift the {object} off the table",
        "grab the {object} and raise it off the table",
    ),
    "place": (
        "put the {object} in the tray",
        "place the {object} into the tray",
        "drop the {object} in the tray",
        "bring the {object} to the tray",
        "put the {object} inside the tray",
        "place the {object} inside the tray",
    ),
    "press": (
        "press the {colour} button",
        "press down the {colour} button",
        "hit the {colour} button",
        "click the {colour} button",
        "press on the {colour} button",
        "hit down on the {colour} button",
    ),
    "open": (
        "open the drawer",
        "pull the drawer open",
        "pull out the drawer",
        "open up the drawer",
        "slide the drawer open",
        "pull open the drawer",
    ),
    "close": (
        "close the drawer",
        "shut the drawer",
        "push the drawer shut",
        "slide the drawer closed",
        "push the drawer in",
        "push the drawer closed",
    ),
    "stack": (
        "stack the {object} on the {base}",
        "put the {object} on top of the {base}",
        "place the {object} on the {base}",
        "set the {object} on top of the {base}",
        "stack the {object} on top of the {base}",
        "set the {object} on the {base}",
    ),
}


@dataclass(frozen=True)
class Task:
    """One thing to do, and the ways to say it.

    `object`, `base` are names such as "red cube"; `button` is a colour; `side` is left or right; `verb` says which of
    the wordings applies (the family's name, or open / close).
    """

    name: str
    family: str
    verb: str
    object: str = ""
    base: str = ""
    button: str = ""
    side: str = ""
    held_out: bool = False

    def _say(self, wording: str) -> str:
        return wording.format(object=self.object, base=self.base, colour=self.button, side=self.side)

    @property
    def instruction(self) -> str:
        """The canonical wording."""
        return self.paraphrases[0]

    @property
    def paraphrases(self) -> tuple[str, ...]:
        """The wordings of training, the canonical one first."""
        return tuple(self._say(wording) for wording in _WORDINGS[self.verb][:-1])

    @property
    def held_out_paraphrase(self) -> str:
        """The wording never seen in training."""
        return self._say(_WORDINGS[self.verb][-1])

    @property
    def objects(self) -> tuple[str, ...]:
        """The graspable objects the task speaks of."""
        return tuple(name for name in (self.object, self.base) if name)

    @property
    def step_limit(self) -> int:
        """Control steps (10 Hz) until an episode is truncated."""
        return STEP_LIMITS[self.family]


# Pairs of verb and object that training never shows together; each half occurs in training with others.
_HELD_OUT = {
    "touch_green_cube",
    "lift_orange_cylinder",
    "place_blue_cylinder_in_tray",
    "push_yellow_cube_left",
    "push_red_cube_right",
    "stack_green_cube_on_red_cube",
}


def _all_tasks() -> dict[str, Task]:
    tasks = []
    for thing in OBJECTS:
        name = thing.replace(" ", "_")
        tasks.append(Task(f"touch_{name}", "reach", "reach", object=thing))
        tasks.append(Task(f"lift_{name}", "lift", "lift", object=thing))
        tasks.append(Task(f"place_{name}_in_tray", "place", "place", object=thing))
        if thing.endswith("cube"):
            for side in DIRECTIONS:
                tasks.append(Task(f"push_{name}_{side}", "push", "push", object=thing, side=side))
    for top, base in (("red", "blue"), ("blue", "yellow"), ("yellow", "green"), ("green", "red")):
        name = f"stack_{top}_cube_on_{base}_cube"
        tasks.append(Task(name, "stack", "stack", object=f"{top} cube", base=f"{base} cube"))
    for colour in BUTTON_COLOURS:
        tasks.append(Task(f"press_{colour}_button", "press", "press", button=colour))
    for verb in ("open", "close"):
        tasks.append(Task(f"{verb}_drawer", "drawer", verb))
    tasks.sort(key=lambda task: FAMILIES.index(task.family))
    return {t.name: Task(**{**t.__dict__, "held_out": t.name in _HELD_OUT}) for t in tasks}


TASKS: dict[str, Task] = _all_tasks()


def get_task(name: str) -> Task:
    """The task of this name, or an error that lists near misses."""
    if name not in TASKS:
        import difflib

        near = difflib.get_close_matches(str(name), TASKS, n=3, cutoff=0.4) or list(TASKS)[:3]
        raise ValueError(
            f"unknown task: expected one of the {len(TASKS)} names in padpolicy_envs.TASKS, got {name!r}; "
            f"did you mean {', '.join(near)}?"
        )
    return TASKS[name]


# --- scenes -----------------------------------------------------------------------------------------------------------

OBJECT_AREA = ((0.345, 0.605), (-0.185, 0.185))  # x, y of object centres: 26 x 37 cm
_OBJECT_GAP = 0.105  # centre to centre: room for the open fingers between two objects
_OBJECT_REACH = 0.034  # half diagonal of a cube
_FINGER_REACH = 0.052  # from an object's centre to the outside of the open fingers
_PUSH_BEFORE, _PUSH_AFTER, _PUSH_SIDE = 0.085, 0.105, 0.058  # free lane around a pushed object
_DRAWER_Y = (-0.215, -0.185)


@dataclass(frozen=True)
class Placed:
    """Something on the table: its name, where (x, y) [m] and turned how far [rad]."""

    name: str
    x: float
    y: float
    yaw: float = 0.0

    @property
    def xy(self) -> np.ndarray:
        """Position float64 [2]."""
        return np.array([self.x, self.y])


@dataclass(frozen=True)
class Scene:
    """Everything a reset decides, except the words."""

    objects: tuple[Placed, ...]
    buttons: tuple[Placed, ...]  # named by colour
    tray: Placed | None
    drawer: Placed | None
    drawer_opening: float  # metres
    start: tuple[float, float, float, float]  # hand x, y, z [m], yaw [rad]
    light_position: tuple[float, float, float]
    light_diffuse: float
    light_ambient: float
    table_colour: tuple[float, float, float]
    colour_gain: tuple[float, ...]  # brightness of each object and button, in that order


def sample_scene(task: Task, seed: int) -> Scene:
    """A scene in which `task` can be done; the same (task, seed) gives the same scene."""
    rng = np.random.default_rng([int(seed), zlib.crc32(task.name.encode())])
    while True:
        scene = _try_scene(task, rng)
        if scene is not None and admits(scene, task) and len(tasks_in(scene)) >= 2:
            return scene


def _try_scene(task: Task, rng: np.random.Generator) -> Scene | None:
    fixture = {"place": "tray", "press": "buttons", "drawer": "drawer"}.get(task.family)
    if fixture is None:
        fixture = ("tray", "buttons", "drawer")[rng.integers(3)]

    names = list(task.objects)
    used = {name.split()[0] for name in names}
    colours: list[str] = []
    if fixture == "buttons":
        free = [c for c in BUTTON_COLOURS if c not in used and c != task.button]
        colours = [task.button] if task.button else []
        colours += [str(c) for c in rng.permutation(free)[: 2 - len(colours)]]
        used |= set(colours)
    # A colour occurs once in a scene, so that an instruction names one thing.
    for name in rng.permutation(OBJECTS)[: rng.integers(20)]:
        if len(names) < rng.integers(2, 4) and name.split()[0] not in used:
            names.append(str(name))
            used.add(name.split()[0])
    if len(names) < 2:
        return None
    names = [names[i] for i in rng.permutation(len(names))]
    colours = [colours[i] for i in rng.permutation(len(colours))]

    (x0, x1), (y0, y1) = OBJECT_AREA
    taken: list[tuple[float, float, float, float]] = []  # x, y and half extents of what is already there

    def fits(x: float, y: float, hx: float, hy: float) -> bool:
        return all(abs(x - tx) > hx + thx or abs(y - ty) > hy + thy for tx, ty, thx, thy in taken)

    def put(name: str, half: float, gap: float, yaw: float) -> Placed | None:
        for _ in range(40):
            x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
            if fits(x, y, half + gap, half + gap):
                taken.append((x, y, half, half))
                return Placed(name, x, y, rng.uniform(-yaw, yaw))
        return None

    tray = drawer = None
    opening = 0.0
    if fixture == "drawer":
        drawer = Placed("drawer", rng.uniform(0.40, 0.54), rng.uniform(*_DRAWER_Y))
        is_open = {"open": False, "close": True}.get(task.verb, bool(rng.integers(2)))
        opening = rng.uniform(0.085, geometry.DRAWER_TRAVEL) if is_open else rng.uniform(0.0, 0.008)
        # From the cabinet to the handle of the open drawer, and a finger's width beyond.
        end = drawer.y + geometry.DRAWER_TRAVEL + geometry.HANDLE_OFFSET + 0.045
        taken.append((drawer.x, (drawer.y - 0.15 + end) / 2, 0.075, (end - drawer.y + 0.15) / 2))
    if fixture == "tray":
        tray = put("tray", geometry.TRAY_INNER + 0.018, 0.0, 0.25)
    buttons = tuple(b for b in [put(colour, 0.040, 0.02, 0.0) for colour in colours] if b is not None)
    if len(buttons) < len(colours) or (fixture == "tray" and tray is None):
        return None

    objects: list[Placed] = []
    for name in names:
        for _ in range(40):
            x, y, yaw = rng.uniform(x0, x1), rng.uniform(y0, y1), rng.uniform(-0.6, 0.6)
            clear = all(np.hypot(x - o.x, y - o.y) > _OBJECT_GAP for o in objects)
            if clear and fits(x, y, _FINGER_REACH, _FINGER_REACH + 0.012):
                objects.append(Placed(name, x, y, yaw if name.endswith("cube") else 0.0))
                break
        else:
            return None

    gains = tuple(rng.uniform(0.88, 1.06, len(objects) + len(buttons)))
    grey, tint = rng.uniform(0.64, 0.80), rng.uniform(-0.03, 0.03, 3)
    return Scene(
        objects=tuple(objects),
        buttons=buttons,
        tray=tray,
        drawer=drawer,
        drawer_opening=opening,
        start=(
            rng.uniform(0.38, 0.50),
            rng.uniform(-0.08, 0.08),
            rng.uniform(0.15, 0.19),
            rng.uniform(-0.15, 0.15),
        ),
        light_position=(rng.uniform(0.9, 1.3), rng.uniform(-0.6, 0.6), rng.uniform(1.1, 1.5)),
        light_diffuse=rng.uniform(0.42, 0.60),
        light_ambient=rng.uniform(0.50, 0.60),
        table_colour=tuple(np.clip(grey + tint, 0, 1)),
        colour_gain=gains,
    )


def admits(scene: Scene, task: Task) -> bool:
    """Whether the task can be done in the scene, and is still to be done."""
    there = {o.name: o for o in scene.objects}
    if any(name not in there for name in task.objects):
        return False
    if task.family == "press":
        return any(b.name == task.button for b in scene.buttons)
    if task.family == "place":
        return scene.tray is not None
    if task.family == "drawer":
        return scene.drawer is not None and (scene.drawer_opening > 0.05) == (task.verb == "close")
    if task.family == "push":
        return _lane_is_free(scene, there[task.object], DIRECTIONS[task.side])
    return True


def _lane_is_free(scene: Scene, thing: Placed, sign: float) -> bool:
    start, end = sorted((thing.y - sign * _PUSH_BEFORE, thing.y + sign * _PUSH_AFTER))
    if start < -0.26 or end > 0.26:
        return False  # off the picture, or where the hand cannot follow
    obstacles = [(o.x, o.y, _OBJECT_REACH, _OBJECT_REACH) for o in scene.objects if o is not thing]
    obstacles += [(b.x, b.y, 0.04, 0.04) for b in scene.buttons]
    if scene.tray is not None:
        obstacles.append((scene.tray.x, scene.tray.y, 0.078, 0.078))
    if scene.drawer is not None:
        y1 = scene.drawer.y + scene.drawer_opening + geometry.HANDLE_OFFSET + 0.02
        y0 = scene.drawer.y - 0.14
        obstacles.append((scene.drawer.x, (y0 + y1) / 2, 0.07, (y1 - y0) / 2))
    return all(
        abs(thing.x - x) > hx + _PUSH_SIDE - _OBJECT_REACH + 0.01 or y + hy < start or y - hy > end
        for x, y, hx, hy in obstacles
    )


def tasks_in(scene: Scene) -> tuple[str, ...]:
    """Names of all tasks the scene admits, in the order of `TASKS`."""
    return tuple(name for name, task in TASKS.items() if admits(scene, task))


# --- success ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What experts and success tests look at; one snapshot of the simulation.

    `tip` [3] is the point between the fingertips, `yaw` the hand's, `opening` the gap between the fingers [m].
    `objects` and `object_yaw` are keyed by name, `button_xy` and `button_depth` by colour.
    """

    scene: Scene
    tip: np.ndarray
    yaw: float
    opening: float
    objects: dict[str, np.ndarray]
    object_yaw: dict[str, float]
    button_xy: dict[str, np.ndarray]
    button_depth: dict[str, float]
    drawer_opening: float


def succeeded(task: Task, state: State) -> bool:
    """Whether the task is done in this very state (no memory of earlier ones)."""
    test = {
        "reach": _touched,
        "push": _pushed,
        "lift": _lifted,
        "place": _placed,
        "press": _pressed,
        "drawer": _drawer_moved,
        "stack": _stacked,
    }
    return admits(state.scene, task) and test[task.family](task, state)


def _touched(task: Task, state: State) -> bool:
    # Closed fingers on the top face: a hand that comes to grasp the object does not touch it in this sense.
    offset = state.tip - state.objects[task.object]
    near = np.hypot(*offset[:2]) < TOUCH_XY and offset[2] < geometry.CUBE_HALF + TOUCH_Z
    return bool(near and offset[2] > 0.5 * geometry.CUBE_HALF and state.opening < 0.2 * geometry.GRIPPER_WIDTH)


def _pushed(task: Task, state: State) -> bool:
    start = next(o for o in state.scene.objects if o.name == task.object)
    now = state.objects[task.object]
    moved = DIRECTIONS[task.side] * (now[1] - start.y)
    on_table = now[2] < geometry.CUBE_HALF + 0.003  # neither carried nor in the tray
    return bool(moved > PUSH_DISTANCE and abs(now[0] - start.x) < PUSH_DRIFT and on_table)


def _lifted(task: Task, state: State) -> bool:
    thing = state.objects[task.object]
    held = np.linalg.norm(thing - state.tip) < 0.05
    return bool(held and thing[2] - geometry.CUBE_HALF > LIFT_HEIGHT)


def in_tray(state: State, thing: np.ndarray, margin: float = 0.0) -> bool:
    """Whether a point [3] is over the inside of the tray."""
    tray = state.scene.tray
    assert tray is not None
    dx, dy = thing[:2] - tray.xy
    c, s = np.cos(tray.yaw), np.sin(tray.yaw)
    return bool(max(abs(c * dx + s * dy), abs(c * dy - s * dx)) < geometry.TRAY_INNER - margin)


def _released(state: State, thing: np.ndarray) -> bool:
    return bool(state.opening > geometry.OBJECT_WIDTH + 0.010 or np.linalg.norm(state.tip - thing) > 0.06)


def _placed(task: Task, state: State) -> bool:
    thing = state.objects[task.object]
    return in_tray(state, thing, 0.01) and bool(thing[2] < 0.045) and _released(state, thing)


def _pressed(task: Task, state: State) -> bool:
    return state.button_depth[task.button] > PRESS_DEPTH


def _drawer_moved(task: Task, state: State) -> bool:
    if task.verb == "open":
        return state.drawer_opening > DRAWER_OPEN
    return state.drawer_opening < DRAWER_CLOSED


def _stacked(task: Task, state: State) -> bool:
    top, base = state.objects[task.object], state.objects[task.base]
    offset = top - base
    on_top = abs(offset[2] - geometry.OBJECT_HEIGHT) < 0.008 and np.hypot(*offset[:2]) < 0.03
    return bool(on_top and base[2] < geometry.CUBE_HALF + 0.01 and _released(state, top))
