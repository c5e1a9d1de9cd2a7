"""Teaches a new policy's eye where instructions point, before it learns to act: minutes instead of hours.

From one observation and the instruction, a glance (padpolicy/model/tokens.py) predicts the robot's pose at the next
key moment of the demonstration: where the gripper's command changes, or where the episode ends (key frames as in
arXiv:2105.14829). Nothing but demonstrations is needed. Only the eye and the glance are trained here, at many times the
speed of the whole network; `training.init` then starts from them. The eye of the shipped policy:

    python scripts/train_eye.py experiment=tabletop data.path=runs/tabletop.zarr out=runs/eye

Settings are those of `padpolicy train`, of which data, model, encoders and training.{threads,device} matter;
--steps, --batch and --lr are this script's own.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from padpolicy import config
from padpolicy.batch import Batch, Sample, collate
from padpolicy.data.dataset import Source
from padpolicy.policy import PadPolicy
from padpolicy.saving import load_fitting, save_policy
from padpolicy.training.build import build_policy, open_data
from padpolicy.training.distributed import World
from padpolicy.training.loop import autocast


class Moments:
    """Single observations of a store, held in memory, and the pose at the next key moment of each."""

    def __init__(self, source: Source, policy: PadPolicy):
        store, spec = source.store, policy.spec
        names = [f"rgb_{c}" for c in spec.cameras] + [f"depth_{c}" for c in spec.depth_cameras] + ["proprio"]
        self.arrays = {name: store.read(name, 0, store.n_rows) for name in names}
        self.source, self.robot = source, spec.robot
        self.episode = np.repeat(np.arange(store.n_episodes), np.diff(store.episode_ends, prepend=0))
        action = store.read("action", 0, store.n_rows)
        grip = [i for i, role in enumerate(source.action_spec.roles) if role == "gripper"]
        command = action[:, grip] > action[:, grip].mean(0)
        key = np.r_[False, (command[1:] != command[:-1]).any(1)]  # the gripper is told something new
        key[store.episode_ends[:-1]] = False  # the first row of an episode follows another episode
        key[store.episode_ends - 1] = True
        rows = np.flatnonzero(key)
        self.target = self.arrays["proprio"][rows[np.searchsorted(rows, np.arange(store.n_rows))]]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[Batch, torch.Tensor]:
        """Observations at `rows`, each in one of its task's wordings, and their targets (B, P)."""
        samples = [
            Sample(
                {f"obs.{name}": array[row : row + 1] for name, array in self.arrays.items()},
                {"obs": np.zeros(1, bool)},
                {"obs": np.zeros(1, np.float32)},
                text=rng.choice(self.source.store.task_of(int(self.episode[row]))["paraphrases"]),
                robot=self.robot,
            )
            for row in rows
        ]
        return collate(samples), torch.from_numpy(self.target[rows])


class Eye(nn.Module):
    """The parts of the network that are trained, and a head that is thrown away."""

    def __init__(self, policy: PadPolicy):
        super().__init__()
        self.network, self.fields = policy.network, policy.fields
        self.head = nn.Linear(2 * policy.config.model.width, policy.spec.proprio_dim)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The pose, normalised, (B, P)."""
        return self.head(self.network.look(self.fields.observed(batch)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", help="key=value, as for padpolicy train")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    cfg = config.load("train", args.settings)
    if cfg.training.threads:
        torch.set_num_threads(cfg.training.threads)
    torch.manual_seed(cfg.seed)
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.training.device != "cpu" else "cpu")
    data = open_data(cfg, str(device), World())
    policy = build_policy(cfg, data, str(device))
    if cfg.training.init:
        load_fitting(policy, cfg.training.init)
    (source,) = data.mixture.robot_sources
    moments, rng = Moments(source, policy), np.random.default_rng(cfg.seed)
    eye = Eye(policy).to(device)

    def loss(rows: np.ndarray) -> torch.Tensor:
        batch, target = moments.batch(rows, rng)
        target = policy.normalizer.normalize("proprio", target.to(device), batch.robot)
        with autocast(device, cfg.training.precision):
            found = eye(batch.to(device))
        return (found.float() - target).square().mean(0)

    trained = [p for p in eye.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, args.lr, betas=(0.9, 0.98), weight_decay=cfg.training.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.1)
    began = time.monotonic()
    for step in range(1, args.steps + 1):
        value = loss(rng.choice(source.rows["train"], args.batch)).mean()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trained, cfg.training.clip_norm)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == args.steps:
            line = f"{step}/{args.steps}  {time.monotonic() - began:.0f} s  loss {value.item():.4f}"
            if len(source.rows["val"]):
                rows = source.rows["val"][:: max(1, len(source.rows["val"]) // 256)]
                with torch.no_grad():
                    line += f"  held-out episodes, per dimension {[round(x, 3) for x in loss(rows).tolist()]}"
            print(line, flush=True)
    save_policy(policy, Path(cfg.out))
    print(f"{cfg.out}. Next: padpolicy train … training.init={cfg.out}")


if __name__ == "__main__":
    main()
