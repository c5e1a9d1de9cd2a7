"""MetaWorld-50 from nothing to a table: demonstrations, the eye, the policy, half precision, the evaluation.

    python scripts/metaworld50.py --out runs/metaworld50              # one large GPU, 16 cores; the extra metaworld
    python scripts/metaworld50.py --out runs/smoke --smoke            # the same in two minutes on a CPU; learns nothing
    python scripts/metaworld50.py --out runs/metaworld50 --minutes 9  # what fits into 9 minutes; again: goes on

Killed and given again it goes on: demonstrations and training where they stopped, the eye and the evaluation from their
beginning (minutes on such a machine). A stage is made again when its command or one before it has changed. Leaves
OUT/policy (at most 12 MB) and OUT/evaluation with results.json and the page. Behind the options stand settings of
`padpolicy train`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).parent
LARGEST_MB = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--experiment", default="metaworld50")
    parser.add_argument("--demonstrations", type=int, default=50, help="per task")
    parser.add_argument("--episodes", type=int, default=20, help="evaluated, per task")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=0, help="stop after so long; 0: when it is done")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("settings", nargs="*", help="key=value, as for padpolicy train")
    args = parser.parse_args()
    ends = time.monotonic() + 60 * args.minutes if args.minutes else None
    tasks, eye_steps, settings = [], 6000, [f"experiment={args.experiment}", *args.settings]
    if args.smoke:
        args.demonstrations, args.episodes, args.workers, eye_steps = 2, 1, min(args.workers, 2), 20
        tasks = ["tasks=[reach,drawer-close]", "env.max_steps=120"]
        settings += ["training.steps=20", "training.batch_size=8", "training.warmup_steps=2", "data.workers=1"]
        settings += ["data.cache_mb=200", "training.checkpoint_every=10", "training.log_every=5", "training.threads=1"]
    store, eye, run, policy = (args.out / name for name in ("demonstrations.zarr", "eye", "run", "policy"))
    cli = [sys.executable, "-m", "padpolicy.cli"]
    stages = {  # what it is called, and its command
        "demonstrations": [*cli, "collect", "env=metaworld", f"episodes_per_task={args.demonstrations}", f"out={store}"]
        + [f"workers={args.workers}", "env.max_steps=250", "seed=1", *tasks],
        "eye": [sys.executable, str(SCRIPTS / "train_eye.py"), *settings, f"data.path={store}", f"out={eye}"]
        + ["--steps", str(eye_steps)],
        "training": [*cli, "train", *settings, f"data.path={store}", f"training.init={eye}", f"out={run}"],
        "policy": [sys.executable, str(SCRIPTS / "ship_policy.py"), str(run), "--out", str(policy)],
        "evaluation": [*cli, "eval", f"checkpoint={policy}", "protocol=metaworld", f"episodes_per_task={args.episodes}"]
        + [f"num_envs={3 * args.workers}", f"env_workers={args.workers}", f"out={args.out / 'evaluation'}", *tasks],
    }
    done: list[list[str]] = []  # commands so far: what a stage depends on
    for name, command in stages.items():
        done.append(command)
        record = args.out / f"{name}.json"
        if record.exists() and json.loads(record.read_text()) == done:
            continue
        print(f"\n{' '.join(command)}", flush=True)
        try:
            subprocess.run(command, check=True, timeout=None if ends is None else ends - time.monotonic())
        except subprocess.TimeoutExpired:
            sys.exit(f"{args.minutes:g} minutes are over. The same command goes on from here.")
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)
        record.write_text(json.dumps(done))
    size_mb = sum(file.stat().st_size for file in policy.iterdir()) / 1e6
    print(f"\n{policy}: {size_mb:.1f} MB; {args.out / 'evaluation' / 'index.html'}")
    if size_mb > LARGEST_MB:
        sys.exit(f"That is more than {LARGEST_MB} MB: a smaller model.width or model.depth fits.")


if __name__ == "__main__":
    main()
