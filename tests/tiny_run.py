"""A store of random pictures and a training run of seconds on it, with the exact, instant encoders of small.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from small import SIZE, HashEncoder, MeanEncoder

from padpolicy import config
from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Episode, Store, StoreSpec
from padpolicy.training import build

EPISODES, STEPS = 4, 14  # per store, per episode


def make_store(
    path: Path,
    robot: bool = True,
    episodes: int = EPISODES,
    names: tuple[str, ...] = ("x", "y", "yaw", "gripper"),
    renderer: str = "rays",
) -> Path:
    """Episodes of random walks and random pictures, the same every time. `robot=False`: pictures and words only."""
    camera = {"size": [SIZE, SIZE], "intrinsics": None, "extrinsics": None}
    spec = StoreSpec(
        cameras={"front": camera},
        depth_cameras=["front"],
        proprio={"names": ["x", "y"], "unit": "m"} if robot else None,
        action=ActionSpec("delta", list(names), 0.1, rotation="yaw", gripper="binary") if robot else None,
        robot="arm" if robot else "",
        renderer=renderer,
        dt_s=0.1,
    )
    with Store.create(path, spec) as store:
        for number in range(episodes):
            rng = np.random.default_rng([number, robot])
            arrays = {
                "rgb_front": rng.integers(0, 256, (STEPS, SIZE, SIZE, 3), np.uint8),
                "depth_front": rng.integers(500, 900, (STEPS, SIZE, SIZE)).astype(np.uint16),
                "timestamp": np.arange(STEPS) * 0.1,
            }
            if robot:
                arrays["proprio"] = rng.standard_normal((STEPS, 2)).astype(np.float32)
                arrays["action"] = np.cumsum(rng.standard_normal((STEPS, len(names))), 0).astype(np.float32)
                arrays["action"][:, -1] = rng.integers(0, 2, STEPS)
            store.append(Episode(arrays, ("push the cube", "lift the cube")[number % 2], id=f"e{number}"))
    return path


def settings(out: Path, data: Path, *overrides: str) -> config.TrainConfig:
    """The tiny recipe on small pictures, in full precision."""
    smaller = [f"data.image_size={SIZE}", "model.width=16", "model.depth_size=8", "model.depth_patch=4"]
    few = ["data.val_fraction=0", "training.precision=fp32", "training.ema=0.9", "encoders.text_tokens=4"]
    return config.load("train", ["experiment=tiny", f"data.path={data}", f"out={out}", *smaller, *few, *overrides])


def use_exact_encoders(set_attribute: Callable[[object, str, object], None]) -> None:
    """Training builds its policy with the encoders of small.py instead of loading networks."""
    set_attribute(build.ImageEncoder, "load", classmethod(lambda cls, name, device: MeanEncoder()))
    set_attribute(build.TextEncoder, "load", classmethod(lambda cls, name, device: HashEncoder()))
