"""What delay costs: the same scenes in virtual time, planning taking 0 to 8 control periods, under four executions.

python scripts/delay_study.py --checkpoint tabletop --episodes 200 --out runs/delay.json

Prints success with its interval and the jerk of the setpoints for each cell, and the paired difference to no delay.
Episodes that are in the file already are not run again. --real 20 then runs the first 20 scenes in real time, with the
arm and the policy in processes of their own, and compares them with the same ones at a delay of one period.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")

SEED = 800_000
PATIENCE = 1.5  # times the task's own time limit: waiting is slow, and slow is not wrong


def setup(checkpoint: str) -> None:
    """Once per process: the policy and the arm."""
    import torch

    from padpolicy import config
    from padpolicy.control.clock import VirtualClock
    from padpolicy.control.planner import LocalBrain
    from padpolicy.control.robots.virtual import VirtualRobot
    from padpolicy.saving import load_policy

    torch.set_num_threads(1)
    global policy, brain, clock, robot
    policy = load_policy(checkpoint, device="cpu")
    brain, clock = LocalBrain(policy), VirtualClock()
    cfg = config.load("deploy", [f"checkpoint={checkpoint}", "robot=tabletop", "out=unused"])
    robot = VirtualRobot(cfg.robot, clock)


def one(job: dict) -> dict:
    """One episode."""
    from padpolicy.config import ControllerConfig
    from padpolicy.control.controller import Controller
    from padpolicy.control.planner import Later

    delay = job["delay"]
    cfg = ControllerConfig(execution=job["execution"], exec_steps=max(2, delay), loop_hz=20)
    controller = Controller(robot, Later(brain, clock, lambda: delay * policy.spec.dt_s), policy.spec, cfg, clock)
    status = robot.reset({"task": job["task"], "seed": job["seed"], "paraphrase": 0})
    controller.begin(status.info["instruction"], seed=job["seed"])
    driven = controller.drive(PATIENCE * status.info["limit_s"], lambda now: now.info["success"])
    positions = np.array(robot.setpoints)[:, :3]
    jerk = np.linalg.norm(np.diff(positions[::5], n=3, axis=0), axis=1) * 20.0**3  # at 20 Hz: what plans ask for
    return {
        **job,
        "success": bool(driven.status.info["success"]),
        "seconds": driven.seconds,
        "jerk_p95": float(np.percentile(jerk, 95)) if len(jerk) else 0.0,
        "interventions": dict(driven.interventions),
        "state": driven.status.state,
    }


def in_real_time(jobs: list[dict], checkpoint: str) -> list[dict]:
    """The same episodes by the wall clock: the arm and the policy each in a process of its own."""
    from padpolicy import config
    from padpolicy.config import ControllerConfig
    from padpolicy.control.clock import RealClock
    from padpolicy.control.controller import Controller
    from padpolicy.control.planner import Beside, ProcessBrain
    from padpolicy.control.robots.process import RobotProcess

    brain = ProcessBrain(checkpoint, "cpu")
    planner = Beside(brain)
    robot = RobotProcess(config.load("deploy", [f"checkpoint={checkpoint}", "robot=tabletop", "out=unused"]).robot)
    results = []
    for job in jobs:
        controller = Controller(robot, planner, brain.spec, ControllerConfig(execution=job["execution"]), RealClock())
        status = robot.reset({"task": job["task"], "seed": job["seed"], "paraphrase": 0})
        controller.begin(status.info["instruction"], seed=job["seed"])
        driven = controller.drive(PATIENCE * status.info["limit_s"], lambda now: now.info["success"])
        robot.stop("over")
        success = bool(driven.status.info["success"])
        results.append({**job, "success": success, "seconds": driven.seconds, "reaction_s": driven.reaction_s})
        while planner.busy:
            planner.poll()
    robot.close()
    planner.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="tabletop")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--delays", type=int, nargs="*", default=[0, 1, 2, 4, 6, 8])
    parser.add_argument("--executions", nargs="*", default=["sync", "naive", "ensemble", "rtc"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--real", type=int, default=0, help="so many scenes in real time, compared with a delay of 1")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    from padpolicy_envs import TASKS

    tasks = [name for name, task in TASKS.items() if not task.held_out]
    out = Path(args.out)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    known = {(d["execution"], d["delay"], d["seed"]) for d in done}
    jobs = [
        {"execution": execution, "delay": delay, "task": tasks[i % len(tasks)], "seed": SEED + i}
        for i in range(args.episodes)
        for delay in args.delays
        for execution in (args.executions if delay else [e for e in args.executions if e in ("sync", "ensemble")])
    ]
    jobs = [job for job in jobs if (job["execution"], job["delay"], job["seed"]) not in known]
    out.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, setup, (args.checkpoint,)) as pool, open(out, "a") as file:
        for answer in as_completed([pool.submit(one, job) for job in jobs]):
            result = answer.result()
            file.write(json.dumps(result) + "\n")
            file.flush()
            done.append(result)
    show(done)
    if args.real:
        execution = args.executions[-1]
        scenes = [{"execution": execution, "task": tasks[i % len(tasks)], "seed": SEED + i} for i in range(args.real)]
        agree(in_real_time(scenes, args.checkpoint), done)


def agree(real: list[dict], done: list[dict]) -> None:
    """Real time beside virtual time, scene by scene."""
    virtual = {r["seed"]: r for r in done if r["execution"] == real[0]["execution"] and r["delay"] == 1}
    both = [(r["success"], virtual[r["seed"]]["success"]) for r in real if r["seed"] in virtual]
    reaction_ms = 1e3 * np.concatenate([r["reaction_s"] for r in real])
    print(
        f"real time, {real[0]['execution']}: {sum(r['success'] for r in real)} of {len(real)}; the same scenes at a "
        f"delay of 1: {sum(v for _, v in both)} of {len(both)}, {sum(a == b for a, b in both)} alike; reaction p50 "
        f"{np.percentile(reaction_ms, 50):.0f} ms, p95 {np.percentile(reaction_ms, 95):.0f} ms"
    )


def show(done: list[dict]) -> None:
    """The table."""
    from padpolicy.evaluation.metrics import paired_difference, wilson

    cells: dict[tuple[str, int], dict[int, dict]] = {}
    for result in done:
        cells.setdefault((result["execution"], result["delay"]), {})[result["seed"]] = result
    base = cells.get(("sync", 0), {})
    print("execution  delay    n  success        95 %       s    jerk  minus no delay, paired")
    for (execution, delay), cell in sorted(cells.items(), key=lambda item: (item[0][1], item[0][0])):
        won = sum(r["success"] for r in cell.values())
        low, high = wilson(won, len(cell))
        both = [seed for seed in cell if seed in base]
        paired = ""
        if both:
            ours, theirs = ([float(these[seed]["success"]) for seed in both] for these in (cell, base))
            mean, lowest, highest = paired_difference(ours, theirs)
            paired = f"{mean:+.1%} [{lowest:+.1%}, {highest:+.1%}]"
        seconds = np.median([r["seconds"] for r in cell.values()])
        jerk = np.median([r["jerk_p95"] for r in cell.values()])
        rate = f"{won / len(cell):8.1%} {low:7.1%}{high:7.1%}"
        print(f"{execution:10} {delay:5} {len(cell):4} {rate} {seconds:6.1f} {jerk:7.1f}  {paired}")


if __name__ == "__main__":
    main()
