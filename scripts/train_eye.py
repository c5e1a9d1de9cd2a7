"""Teaches a new policy's eye where instructions point, before it learns to act: minutes instead of hours.

From one observation and the instruction, a glance (padpolicy/model/tokens.py) predicts the robot's pose at the next
key moment of the demonstration: where the gripper's command changes, or where the episode ends (key frames as in
arXiv:2105.14829). Errors are counted in the spread that these poses have within a task, so that knowing the task alone
is worth 1: what is looked for is where things are, however close to each other a task puts them. Nothing but
demonstrations is needed. Only the eye and the glance are trained here, at many times the speed of the whole network;
`training.init` then starts from them. The eye of the shipped policy (with plain errors, still):

    python scripts/train_eye.py experiment=tabletop data.path=runs/tabletop.zarr out=runs/eye --steps 2600

Settings are those of `padpolicy train`, of which seed, data, model, encoders and
training.{init,threads,device,precision,weight_decay,clip_norm} matter; --steps, --batch and --lr are this script's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from padpolicy import config
from padpolicy.batch import Batch, collate
from padpolicy.config import ConfigError, TrainConfig
from padpolicy.data.dataset import Source, open_source
from padpolicy.data.store import StoreError
from padpolicy.device import autocast, pick_device
from padpolicy.policy import PadPolicy
from padpolicy.saving import CheckpointError, load_fitting, save_policy
from padpolicy.training.build import build_policy, open_data
from padpolicy.training.distributed import World

LEAST_SPREAD = 0.1  # of the spread over all tasks


class Moments:
    """The observations of a source, the pose at the next key moment of each, and how these spread within its task."""

    def __init__(self, source: Source):
        self.source, store = source, source.store
        action, proprio = (store.read(name, 0, store.n_rows) for name in ("action", "proprio"))
        grip = [i for i, role in enumerate(source.action_spec.roles) if role == "gripper"]
        command = action[:, grip] > action[:, grip].mean(0)
        key = np.r_[False, (command[1:] != command[:-1]).any(1)]  # the gripper is told something new
        key[store.episode_ends[:-1]] = False  # the first row of an episode follows another episode
        key[store.episode_ends - 1] = True
        rows = np.flatnonzero(key)
        self.target = proprio[rows[np.searchsorted(rows, np.arange(store.n_rows))]]
        task = np.repeat(store.meta["episode_task"], np.diff(store.episode_ends, prepend=0))
        least = LEAST_SPREAD * self.target.std(0)
        self.spread = np.empty_like(self.target)
        for number in np.unique(task):
            self.spread[task == number] = np.maximum(self.target[task == number].std(0), least)

    def batch(
        self, windows: np.ndarray, rng: np.random.Generator, split: str
    ) -> tuple[Batch, torch.Tensor, torch.Tensor]:
        """Observations at `windows` of a split, each in one of its task's wordings; targets and their spread (B, P)."""
        samples = [self.source.sample(int(i), rng, split) for i in windows]
        rows = self.source.rows[split][windows]
        return collate(samples), torch.from_numpy(self.target[rows]), torch.from_numpy(self.spread[rows])


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
    try:
        cfg = config.load("train", args.settings)
        policy, moments = prepare(cfg)
    except (ConfigError, StoreError, CheckpointError) as error:
        parser.error(str(error))
    train(cfg, policy, moments, args.steps, args.batch, args.lr)


def prepare(cfg: TrainConfig) -> tuple[PadPolicy, Moments]:
    """A new policy, and the observations to teach it on.

    Raises:  ConfigError, StoreError, CheckpointError: settings without an eye to teach, data without poses to learn
             from, or a training.init that does not fit.
    """
    if not cfg.model.glance:
        raise ConfigError("model.glance=false: this policy has no glance to teach. Set model.glance=true.")
    if cfg.training.threads:
        torch.set_num_threads(cfg.training.threads)
    torch.manual_seed(cfg.seed)
    device = pick_device(cfg.training.device)
    data = open_data(cfg, device, World())
    policy = build_policy(cfg, data, device)
    if cfg.training.init:
        load_fitting(policy, cfg.training.init)
    if not data.mixture.robot_sources or not data.mixture.proprio_names:
        raise ConfigError(f"data.path={cfg.data.path!r} has no actions or no proprio: where is the next key moment?")
    seen_only = dataclasses.replace(cfg.data, future_cameras=[], future_depth_cameras=[])
    pixels = cfg.model.eyes != "latents"
    return policy, Moments(open_source(cfg.data.path, seen_only, False, data.image_encoder.fingerprint, pixels))


def train(cfg: TrainConfig, policy: PadPolicy, moments: Moments, steps: int, batch_size: int, peak_lr: float) -> None:
    """AdamW on the squared error of the pose, in its spread within the task; writes a policy folder into cfg.out."""
    rng, eye = np.random.default_rng(cfg.seed), Eye(policy).to(policy.device)
    windows = {split: moments.source.n_windows(split) for split in ("train", "val")}

    def loss(chosen: np.ndarray, split: str) -> torch.Tensor:
        batch, target, spread = moments.batch(chosen, rng, split)
        aside, target = (
            policy.normalizer.normalize("proprio", pose.to(policy.device), batch.robot)
            for pose in (target + spread, target)
        )
        with autocast(policy.device, cfg.training.precision):
            found = eye(batch.to(policy.device))
        return ((found.float() - target) / (aside - target)).square().mean(0)

    trained = [p for p in eye.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, peak_lr, betas=(0.9, 0.98), weight_decay=cfg.training.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, steps, pct_start=0.1)
    began = time.monotonic()
    for step in range(1, steps + 1):
        value = loss(rng.integers(windows["train"], size=batch_size), "train").mean()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trained, cfg.training.clip_norm)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            line = f"{step}/{steps}  {time.monotonic() - began:.0f} s  loss {value.item():.4f}"
            if windows["val"]:
                held_out = np.arange(windows["val"])[:: max(1, windows["val"] // 256)]
                with torch.no_grad():
                    errors = [round(x, 3) for x in loss(held_out, "val").tolist()]
                line += f"  held-out episodes, per dimension {errors}"
            print(line, flush=True)
    save_policy(policy, Path(cfg.out))
    print(f"{cfg.out}. Next: padpolicy train … training.init={cfg.out}")


if __name__ == "__main__":
    main()
