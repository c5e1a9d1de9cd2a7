"""A recorded episode drives a robot again: the recording takes the policy's place, everything else is as in deploy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from padpolicy.config import ConfigError, ControllerConfig, DeployConfig, ReplayConfig
from padpolicy.control.planner import Answer, Beside, Request
from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Store
from padpolicy.deploy.run import Say, drive
from padpolicy.spec import PolicySpec

MOST_STEPS = 1000  # waypoints of one plan


class Recorded:
    """A brain that remembers: its one plan is the whole episode, actions (T, A).

    Raises:  ConfigError for an episode longer than a plan can be.
    """

    def __init__(self, action_TA: np.ndarray, action: ActionSpec, robot: str):
        if len(action_TA) > MOST_STEPS:
            raise ConfigError(f"the episode has {len(action_TA)} steps; a plan can have {MOST_STEPS}. Cut it.")
        self._action_TA = np.asarray(action_TA, np.float32)
        self.seconds = len(action_TA) * action.dt_s
        self.spec = PolicySpec(
            cameras=[],
            depth_cameras=[],
            future_cameras=[],
            future_depth_cameras=[],
            image_size=1,
            obs_steps=1,
            chunk_steps=len(action_TA),
            dt_s=action.dt_s,
            future_offsets_s=[],
            action_dim=action.dim,
            proprio_dim=0,
            action=action.to_dict(),
            robot=robot,
            renderer="",
        )

    def __call__(self, request: Request) -> Answer:
        return Answer(request, self._action_TA)


def replay(cfg: ReplayConfig, say: Say = print) -> dict[str, Any]:
    """Plays one recorded episode on a robot, under the same safety as a policy. Returns what results.json holds.

    Raises:  ConfigError if the recording does not fit the robot; StoreError if there is no such episode.
    """
    store = Store.open(cfg.path)
    action = store.action_spec
    if action is None or action.kind == "unknown":
        raise ConfigError(f"{store.path} does not say what its robot was commanded: there is nothing to replay.")
    told = "executed" if "executed" in store.fields else "action"  # what the robot was told, not what it should be
    recorded = Recorded(store.read(told, *store.bounds(cfg.episode)), action, store.robot)
    task = store.task_of(cfg.episode)
    said = DeployConfig(
        out=cfg.out,
        checkpoint=str(cfg.path),
        instruction=task["paraphrases"][0] if task else "what was recorded",
        seed=max(int(store.meta["episode_seed"][cfg.episode]), 0),
        seconds=recorded.seconds + 1,
        page=cfg.page,
        page_port=cfg.page_port,
        dry_run=cfg.dry_run,
        robot=replace(
            cfg.robot, safety=replace(cfg.robot.safety, max_plan_age_s=recorded.seconds + 5)
        ),  # it looks once
        controller=ControllerConfig(execution="naive", exec_steps=MOST_STEPS),
    )
    return drive(said, Beside(recorded), recorded.spec, say)
