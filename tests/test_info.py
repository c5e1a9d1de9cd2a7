"""What `padpolicy info` says about a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from padpolicy.config import ConfigError
from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Episode, Store, StoreSpec
from padpolicy.info import info


def test_a_dataset(tmp_path: Path) -> None:
    action = ActionSpec("delta", ["x", "gripper"], 0.1, gripper="binary", units=["m", "1"])
    spec = StoreSpec(
        {"front": {"size": [4, 6], "intrinsics": None, "extrinsics": None}}, action=action, robot="arm", dt_s=0.1
    )
    with Store.create(tmp_path / "d.zarr", spec) as store:
        for success in (True, False):
            arrays = {"rgb_front": np.zeros((31, 4, 6, 3), np.uint8), "action": np.zeros((31, 2), np.float32)}
            store.append(Episode(arrays, task="go", success=success))
    text = info(tmp_path / "d.zarr")
    assert "dataset, 2 episodes, 62 steps, 0.1 minutes" in text
    assert "robot     arm" in text
    assert "renderer  (real cameras)" in text
    assert "rgb_front      4 x 6 x 3 uint8, rgb" in text
    assert "action         2 float32, delta, x [m], gripper [1]" in text
    assert "go: 2 episodes, 1 successful" in text


def test_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a dataset .* nor a policy .* nor a training run"):
        info(tmp_path)
