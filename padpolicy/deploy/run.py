"""From settings to a robot that moves, and what is left of it: a recording, the robot's log, results.json."""

from __future__ import annotations

import json
import math
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from padpolicy import provenance
from padpolicy.config import ConfigError, DeployConfig
from padpolicy.control.clock import RealClock
from padpolicy.control.controller import SLOW, Controller, Drive
from padpolicy.control.planner import Answer, Beside, Brain, ProcessBrain, local_brain
from padpolicy.control.robot import Observation, Plan, Robot, Status
from padpolicy.control.robots.process import RobotProcess
from padpolicy.control.watch import Watch
from padpolicy.data.actions import ActionSpec
from padpolicy.deploy.page import LivePage
from padpolicy.deploy.record import Recorder
from padpolicy.spec import PolicySpec

Say = Callable[[str], None]


def deploy(cfg: DeployConfig, say: Say = print) -> dict[str, Any]:
    """Drives a robot by a policy, episode after episode.

    Returns: what results.json holds.
    Raises:  ConfigError if policy and robot do not fit, or one of them cannot be used; RobotError or BrainError if one
             of them goes away, after the robot was told to stop.
    """
    if bool(cfg.checkpoint) == bool(cfg.server):
        raise ConfigError("padpolicy deploy needs one of checkpoint=RUN and server=ws://HOST:PORT.")
    if cfg.watch and not cfg.checkpoint:
        raise ConfigError("watch=true needs checkpoint=RUN: the monitor imagines here, not on the server.")
    say("Waking the policy …")
    brain, spec = _brain(cfg)
    try:
        if cfg.controller.execution == "rtc" and not getattr(brain, "prefixes", True):
            raise ConfigError(
                "controller.execution=rtc needs a policy that has learned to go on from a known prefix. This has not: "
                "use naive, or train with diffusion.prefix_share above 0."
            )
        return drive(cfg, Beside(brain), spec, say)
    finally:
        close = getattr(brain, "close", None)
        if close is not None:
            close()


def _brain(cfg: DeployConfig) -> tuple[Brain, PolicySpec]:
    if cfg.server:
        from padpolicy.control.client import RemoteBrain

        remote = RemoteBrain(cfg.server, api_key=cfg.api_key, ca_file=cfg.ca_file)
        return remote, remote.spec
    if cfg.brain == "thread" or cfg.brain == "auto" and _on_cuda(cfg.device):
        local = local_brain(cfg.checkpoint, cfg.device, cfg.threads, cfg.compile)
        return local, local.policy.spec
    apart = ProcessBrain(cfg.checkpoint, cfg.device, cfg.threads, cfg.compile)
    return apart, apart.spec


def _on_cuda(device: str) -> bool:
    from padpolicy.device import pick_device

    return pick_device(device).startswith("cuda")


def drive(cfg: DeployConfig, planner: Beside, spec: PolicySpec, say: Say) -> dict[str, Any]:
    """All episodes, whoever plans. Returns what results.json holds."""
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    robot_cfg = replace(cfg.robot, name=cfg.robot.name or spec.robot, log=cfg.robot.log or str(out / "robot.jsonl"))
    planner.wait()
    say(f"Starting the robot ({robot_cfg.kind}) …")
    process = RobotProcess(robot_cfg)
    robot: Robot = DryRun(process) if cfg.dry_run else process
    recorder: Recorder | None = None
    page: LivePage | None = None
    watch: Watch | None = None
    episodes: list[dict[str, Any]] = []
    try:
        action = ActionSpec.from_dict(spec.action)
        if cfg.page:
            cameras, names = list(process.spec.cameras), list(process.spec.names)
            page = LivePage(cfg.page_port, process.stop_url, cameras, names, spec.future_offsets_s)
            say(f"Watch it, and stop it: {page.url}   (or press Enter here)")
        if cfg.watch:
            say("Waking the monitor …")
            watch = Watch(cfg.checkpoint, cfg.monitor, cfg.device, cfg.threads)
        controller = Controller(robot, planner, spec, cfg.controller, RealClock())
        for i in range(cfg.episodes):
            status = robot.reset(_scene(cfg, i))
            seen = robot.observe()
            assert seen is not None  # a reset ends with one
            if recorder is None and not cfg.dry_run:
                recorder = Recorder(out / "recording.zarr", process.spec, action, seen)
            instruction = str(cfg.instruction or status.info.get("instruction", ""))
            if not instruction:
                raise ConfigError('a real robot has to be told what to do: instruction="…".')
            _listen(
                controller,
                recorder,
                page,
                watch,
                cfg.imagine_s if getattr(planner.brain, "imagines", False) else 0.0,
            )
            if page is not None:
                page.episode(i, instruction)
            say(f"Episode {i + 1} of {cfg.episodes}: {instruction}")
            controller.begin(instruction, seed=cfg.seed + i)
            if recorder is not None:
                recorder.begin()
            alarms = None
            if watch is not None:
                alarms = Alarms(watch, str(status.info.get("task", "")), controller, cfg.monitor.on_alarm, page)
            driven = Drive(status)
            try:
                with Key(robot):
                    driven = controller.drive(cfg.seconds, partial(_done, page, alarms))
                _end(robot, recorder, page)
            finally:  # whatever happened: what was seen is kept
                success = _succeeded(driven.status, say)
                if recorder is not None:
                    recorder.keep(instruction, success, cfg.seed + i, f"deploy {cfg.checkpoint or cfg.server}")
            episodes.append(_summary(driven, instruction, success, cfg.seed + i, alarms))
            say(_line(episodes[-1]))
            if driven.interventions["stop"]:
                break  # somebody stopped it: it is not started again behind their back
        return _write(out, cfg, episodes)
    finally:
        process.close()
        if watch is not None:
            watch.close()
        if recorder is not None:
            recorder.close()
        if page is not None:
            page.close()


def _scene(cfg: DeployConfig, i: int) -> dict[str, Any]:
    """Reset options; hardware takes no notice of them."""
    scene: dict[str, Any] = {"seed": cfg.seed + i}
    if cfg.task:
        scene |= {"task": cfg.task, "paraphrase": 0}
    elif cfg.instruction and cfg.robot.kind == "tabletop":
        scene |= {"instruction": cfg.instruction}
    return scene


def _listen(
    controller: Controller, recorder: Recorder | None, page: LivePage | None, watch: Watch | None, imagine_s: float
) -> None:
    imagined_at_s = -math.inf
    controller.imagine = page is not None and imagine_s > 0

    def seen(observation: Observation) -> None:
        if recorder is not None:
            recorder.seen(observation)
        if page is not None:
            page.seen(observation)
        if watch is not None:
            watch.seen(observation)

    def planned(plan: Plan, answer: Answer) -> None:
        nonlocal imagined_at_s
        if page is not None:
            page.planned(plan, answer, controller.reaction_s[-1])
        if answer.future:
            imagined_at_s = plan.observed_at_s
        controller.imagine = page is not None and 0 < imagine_s <= plan.observed_at_s - imagined_at_s

    controller.on_observation, controller.on_plan = seen, planned


def _end(robot: Robot, recorder: Recorder | None, page: LivePage | None) -> None:
    """The arm comes to a stand, and what it looks like then is recorded too."""
    robot.stop("the episode is over")
    over_s, until_s = robot.status().time_s, time.monotonic() + 2
    while time.monotonic() < until_s:
        seen = robot.observe()
        if seen is not None and seen.time_s > over_s:
            if recorder is not None:
                recorder.seen(seen)
            break
        time.sleep(0.005)
    if page is not None:
        page.status(robot.status())


class Alarms:
    """What the monitor says during an episode, and what is done about it.

    An alarm counts once until the scores have been below their threshold again.
    """

    def __init__(self, watch: Watch, task: str, controller: Controller, on_alarm: str, page: LivePage | None):
        self.watch, self.task, self.controller, self.on_alarm, self.page = watch, task, controller, on_alarm, page
        watch.begin(task)
        self.raised: list[dict[str, Any]] = []
        self._ringing = False

    def look(self) -> None:
        """Takes in the scores that have come. Never waits."""
        while (score := self.watch.poll()) is not None:
            if self.page is not None:
                self.page.score(score.value, score.threshold, score.alarm)
            if score.alarm and not self._ringing:
                channel = max(score.parts, key=score.parts.__getitem__)
                self.raised.append({"time_s": score.time_s, "value": round(score.value, 3), "channel": channel})
                self._act(f"monitor: {channel} is {score.value:.2f} of its threshold")
            self._ringing = score.alarm

    def _act(self, reason: str) -> None:
        if self.on_alarm == "replan":
            self.controller.replan()
            self.watch.begin(self.task)  # what it expected of the old plan would alarm again
        elif self.on_alarm == "slow":
            self.controller.pace = SLOW
        else:
            self.controller.robot.stop(reason)


def _done(page: LivePage | None, alarms: Alarms | None, status: Status) -> bool:
    """Whether a simulator says so; the page and the monitor are looked after on the way."""
    if alarms is not None:
        alarms.look()
    if page is not None:
        page.status(status)
    return bool(status.info.get("success"))


def _succeeded(status: Status, say: Say) -> bool:
    """A simulator knows; of a real robot a person is asked, if there is one."""
    if "success" in status.info:
        return bool(status.info["success"])
    if not sys.stdin.isatty():
        return False
    say("Did it do what it was told? [y/N]")
    return sys.stdin.readline().strip().lower().startswith("y")


def _summary(driven: Drive, instruction: str, success: bool, seed: int, alarms: Alarms | None) -> dict[str, Any]:
    reaction_ms = [1e3 * s for s in driven.reaction_s]
    return {
        "instruction": instruction,
        "seed": seed,
        "success": success,
        "seconds": round(driven.seconds, 3),
        "plans": driven.plans,
        "reaction_ms_p50": round(float(np.percentile(reaction_ms, 50)), 1) if reaction_ms else None,
        "reaction_ms_p95": round(float(np.percentile(reaction_ms, 95)), 1) if reaction_ms else None,
        "late_waypoints": driven.late,
        "interventions": dict(driven.interventions),
        "alarms": None if alarms is None else alarms.raised,
        "state": driven.status.state,
        "reason": driven.status.reason,
    }


def _line(episode: Mapping[str, Any]) -> str:
    held = ", ".join(f"{kind} {n}" for kind, n in episode["interventions"].items())
    return (
        f"  {'done' if episode['success'] else 'not done'} after {episode['seconds']:.1f} s, {episode['plans']} plans, "
        f"reaction p50 {episode['reaction_ms_p50']} ms, p95 {episode['reaction_ms_p95']} ms"
        + (f"; held back: {held}" if held else "")
        + (f"; stopped: {episode['reason']}" if episode["state"] == "stopped" else "")
    )


def _write(out: Path, cfg: DeployConfig, episodes: list[dict[str, Any]]) -> dict[str, Any]:
    results = {
        "checkpoint": cfg.checkpoint,
        "server": cfg.server,
        "robot": cfg.robot.kind,
        "execution": cfg.controller.execution,
        "episodes": episodes,
        "succeeded": sum(episode["success"] for episode in episodes),
        "commit": provenance.commit(),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1))
    return results


class DryRun:
    """A robot that is looked at but sent nothing: plans are made and shown, the arm stays where it is."""

    def __init__(self, robot: Robot):
        self._robot, self.spec = robot, robot.spec

    def reset(self, options: Mapping[str, Any] | None = None) -> Status:
        return self._robot.reset(options)

    def observe(self) -> Observation | None:
        return self._robot.observe()

    def command(self, plan: Plan) -> None:
        pass

    def beat(self) -> None:
        pass

    def stop(self, reason: str) -> None:
        self._robot.stop(reason)

    def status(self) -> Status:
        return self._robot.status()

    def close(self) -> None:
        self._robot.close()


class Key:
    """While this is open, Enter at the terminal stops the robot. What is typed afterwards is left for others."""

    def __init__(self, robot: Robot):
        self._robot, self._over = robot, threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> None:
        if sys.stdin is not None and sys.stdin.isatty():
            self._thread.start()

    def _wait(self) -> None:
        while not self._over.is_set():
            if select.select([sys.stdin], [], [], 0.05)[0]:
                sys.stdin.readline()
                self._robot.stop("key")
                return

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
