"""A recorded episode drives a robot again: the recording takes the policy's place, everything else is as in deploy."""

from __future__ import annotations

from typing import Any

import numpy as np

from padpolicy.config import ConfigError, ControllerConfig, DeployConfig, ReplayConfig
from padpolicy.control.planner import Answer, Beside, Request
from padpolicy.data.actions import hold_action
from padpolicy.data.store import Store
from padpolicy.deploy.run import Say, drive
from padpolicy.spec import PolicySpec

CHUNK_STEPS = 16


class Recorded:
    """A brain that remembers: actions (T, A) of an episode, by how long ago its first observation was."""

    def __init__(self, store: Store, i: int):
        action = store.action_spec
        if action is None or action.kind == "unknown":
            raise ConfigError(f"{store.path} does not say what its robot was commanded: there is nothing to replay.")
        start, stop = store.bounds(i)
        self._action_TA = np.asarray(store.read("action", start, stop), np.float32)
        self._rest_A, self._began_s = hold_action(action, self._action_TA[-1]), -1.0
        self.seconds = (stop - start) * action.dt_s
        self.spec = PolicySpec(
            cameras=[],
            depth_cameras=[],
            future_cameras=[],
            future_depth_cameras=[],
            image_size=1,
            obs_steps=1,
            chunk_steps=CHUNK_STEPS,
            dt_s=action.dt_s,
            future_offsets_s=[],
            action_dim=action.dim,
            proprio_dim=0,
            action=action.to_dict(),
            robot=store.robot,
            renderer="",
        )

    def __call__(self, request: Request) -> Answer:
        if request.number == 0:
            self._began_s = request.observed_at_s
        first = round((request.observed_at_s - self._began_s) / self.spec.dt_s)
        chunk_TA = np.tile(self._rest_A, (CHUNK_STEPS, 1))
        known = self._action_TA[first : first + CHUNK_STEPS]
        chunk_TA[: len(known)] = known
        return Answer(request, chunk_TA)


def replay(cfg: ReplayConfig, say: Say = print) -> dict[str, Any]:
    """Plays one recorded episode on a robot, under the same safety as a policy. Returns what results.json holds.

    Raises:  ConfigError if the recording does not fit the robot; StoreError if there is no such episode.
    """
    store = Store.open(cfg.path)
    recorded, task = Recorded(store, cfg.episode), store.task_of(cfg.episode)
    said = DeployConfig(
        out=cfg.out,
        checkpoint=str(cfg.path),
        instruction=task["paraphrases"][0] if task else "what was recorded",
        seed=max(int(store.meta["episode_seed"][cfg.episode]), 0),
        seconds=recorded.seconds + 1,
        page=cfg.page,
        page_port=cfg.page_port,
        dry_run=cfg.dry_run,
        robot=cfg.robot,
        controller=ControllerConfig(execution="naive", exec_steps=CHUNK_STEPS // 2),
    )
    return drive(said, Beside(recorded), recorded.spec, say)
