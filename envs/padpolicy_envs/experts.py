"""Scripted experts: for every state, the clean action towards the goal of the present task.

An expert has no memory. Its phase is read off the state, so a state reached by a disturbance gets a corrective action
and the same state always gets the same one. Approaches follow a funnel: the hand comes in high and descends as it
gets above its goal, which gives one smooth path without way-points or waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray

from . import scene as geometry
from .rollout import Moment, rollout
from .tasks import DIRECTIONS, State, Task, in_tray

if TYPE_CHECKING:
    from .tabletop import Tabletop

SPEED = 0.028  # metres per step, along a straight line
TURN = 0.25  # radians per step
CRUISE = 0.095  # height of the fingertips while crossing the table
GRASP_Z = 0.014  # height of the fingertips while grasping
OPEN, CLOSED = 1.0, 0.0


def expert_action(env: gymnasium.Env) -> NDArray[np.float32]:
    """The expert's action float32 [5] for the environment's present state and task; callable at any time."""
    tabletop = cast("Tabletop", env.unwrapped)
    assert tabletop.task is not None, "call reset() first"
    task, state, command = tabletop.task, tabletop.state(), tabletop.commanded_pose
    goal, yaw, gripper = _EXPERTS[task.family](task, state, command)
    # Deltas are taken from the command, which the arm follows within millimetres: no feedback loop, no ringing.
    move = goal - command[:3]
    move *= min(1.0, SPEED / max(float(np.linalg.norm(move)), 1e-9))
    turn = np.clip(yaw - command[3], -TURN, TURN)
    return np.array([*move, turn, gripper], np.float32)


def rollout_expert(env: gymnasium.Env, seed: int, task: str, noise: float = 0.0) -> Iterator[Moment]:
    """Play one episode of the expert; see `rollout.rollout`. Actions are [5], disturbances last 0.2 to 0.5 s."""
    return rollout(env, seed, task, noise, expert_action, stretch=(2, 6))


def _funnel(command: NDArray, target: NDArray, turn_left: float = 0.0, cruise: float = CRUISE) -> NDArray:
    """Where to head for now: above the target while away from it, into it as the distance shrinks."""
    flat = target[:2] - command[:2]
    away = np.hypot(*flat) + 0.06 * abs(turn_left)
    height = target[2] + np.clip((away - 0.006) * 3.0, 0, max(cruise - target[2], 0))
    # While still too low, rise before crossing.
    low = np.clip((height - command[2] - 0.015) / 0.03, 0, 1)
    return np.array([*(command[:2] + flat * (1 - 0.9 * low)), height])


def _nearest_yaw(yaw: float, period: float) -> float:
    """The equivalent of an object's yaw that is nearest to a straight hand."""
    return float(yaw - period * np.round(yaw / period))


def _grasp_yaw(state: State, name: str) -> float:
    return _nearest_yaw(state.object_yaw[name], np.pi / 2) if name.endswith("cube") else 0.0


def _reach(task: Task, state: State, command: NDArray) -> tuple[NDArray, float, float]:
    top = state.objects[task.object] + [0, 0, geometry.CUBE_HALF + 0.002]
    return _funnel(command, top), 0.0, CLOSED


def _press(task: Task, state: State, command: NDArray) -> tuple[NDArray, float, float]:
    xy = state.button_xy[task.button]
    return _funnel(command, np.array([*xy, geometry.BUTTON_HEIGHT - geometry.BUTTON_TRAVEL])), 0.0, CLOSED


def _push(task: Task, state: State, command: NDArray) -> tuple[NDArray, float, float]:
    thing, sign = state.objects[task.object], DIRECTIONS[task.side]
    behind = sign * (thing[1] - command[1])  # how far the fingers are behind the object
    aside = command[0] - thing[0]
    low = command[2] < 0.035
    if low and 0.015 < behind < 0.085 and abs(aside) < 0.02:
        return np.array([thing[0], command[1] + sign * SPEED, GRASP_Z]), 0.0, CLOSED
    return _funnel(command, np.array([thing[0], thing[1] - sign * 0.062, GRASP_Z])), 0.0, CLOSED


def _holding(state: State, name: str) -> bool:
    """Whether the fingers have closed around the object."""
    offset = state.objects[name] - state.tip
    near = np.hypot(*offset[:2]) < 0.02 and abs(offset[2]) < 0.035
    return bool(near and state.opening < geometry.OBJECT_WIDTH + 0.004)


def _grasp(task: Task, state: State, command: NDArray) -> tuple[NDArray, float, float]:
    thing = state.objects[task.object]
    target = np.array([*thing[:2], max(thing[2] - geometry.CUBE_HALF, 0) + GRASP_Z])
    yaw = _grasp_yaw(state, task.object)
    flat, high = np.hypot(*(state.tip - target)[:2]), state.tip[2] - target[2]
    there = flat < 0.010 and high < 0.012 and abs(yaw - state.yaw) < 0.15
    return _funnel(command, target, yaw - command[3]), yaw, CLOSED if there else OPEN


def _lift(task: Task, state: State, command: NDArray) -> tuple[NDArray, float, float]:
    if not _holding(state, task.object):
        return _grasp(task, state, command)
    return np.array([*command[:2], 0.16]), command[3], CLOSED


def _carry(task: Task, state: State, command: NDArray, goal: NDArray, cruise: float) -> tuple[NDArray, float, float]:
    """With the object in hand, bring the fingertips to `goal` [3] and let go there."""
    flat, high = np.hypot(*(state.tip - goal)[:2]), state.tip[2] - goal[2]
    there = flat < 0.010 and high < 0.012
    return _funnel(command, goal, cruise=cruise), 0.0, OPEN if there else CLOSED


def _retreat(state: State, command: NDArray) -> tuple[NDArray, float, float]:
    return np.array([*command[:2], 0.16]), command[3], OPEN


def _place(task: Task, state: State, command: NDArray) -> tuple[NDArray, float, float]:
    thing = state.objects[task.object]
    if in_tray(state, thing, 0.012) and thing[2] < 0.045 and not _holding(state, task.object):
        return _retreat(state, command)
    if not _holding(state, task.object):
        return _grasp(task, state, command)
    assert state.scene.tray is not None
    goal = np.array([*state.scene.tray.xy, GRASP_Z + 0.012])
    return _carry(task, state, command, goal, cruise=0.080)


def _stack(task: Task, state: State, command: NDArray) -> tuple[NDArray, float, float]:
    thing, base = state.objects[task.object], state.objects[task.base]
    offset = thing - base
    on_top = np.hypot(*offset[:2]) < 0.02 and abs(offset[2] - geometry.OBJECT_HEIGHT) < 0.006
    if on_top and not _holding(state, task.object):
        return _retreat(state, command)
    if not _holding(state, task.object):
        return _grasp(task, state, command)
    # What the fingers hold may sit a little off their middle.
    goal = np.array([*(base + state.tip - thing)[:2], base[2] + geometry.CUBE_HALF + GRASP_Z + 0.004])
    return _carry(task, state, command, goal, cruise=0.088)


def _drawer(task: Task, state: State, command: NDArray) -> tuple[NDArray, float, float]:
    drawer = state.scene.drawer
    assert drawer is not None
    handle = np.array([drawer.x, drawer.y + state.drawer_opening + geometry.HANDLE_OFFSET + 0.01])
    sign = 1.0 if task.verb == "open" else -1.0
    # Opening hooks the closed fingers behind the bar, closing pushes the bar from the outside.
    start = handle[1] - 0.034 if sign > 0 else handle[1] + 0.036
    behind = sign * (handle[1] - command[1])
    if command[2] < 0.045 and 0.005 < behind < 0.055 and abs(command[0] - handle[0]) < 0.025:
        return np.array([handle[0], command[1] + sign * SPEED, 0.024]), 0.0, CLOSED
    return _funnel(command, np.array([handle[0], start, 0.024])), 0.0, CLOSED


_EXPERTS = {
    "reach": _reach,
    "push": _push,
    "lift": _lift,
    "place": _place,
    "press": _press,
    "drawer": _drawer,
    "stack": _stack,
}
