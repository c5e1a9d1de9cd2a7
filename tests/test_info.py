"""What `padpolicy info` says about a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small import small_policy

from padpolicy import cli
from padpolicy.config import ConfigError
from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Episode, Store, StoreSpec
from padpolicy.info import info
from padpolicy.saving import CheckpointError, save_policy


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


def test_a_policy(tmp_path: Path) -> None:
    save_policy(small_policy(steps=3), tmp_path / "p")
    text = info(tmp_path / "p")
    assert "robot     arm (3 action and 4 proprioception numbers)" in text
    assert "sees      rgb front, rgb wrist, depth front at 32 px; renderer rays" in text
    assert "plans     6 actions, 0.1 s apart" in text
    assert "imagines  front at [0.3, 0.6] s" in text
    assert "network   2 blocks of width 32" in text
    assert "diffusion flow, 3 sampling steps, coupling blind" in text
    file = tmp_path / "p" / "policy.json"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"p is damaged or cut short \(policy.json: "):
        info(tmp_path / "p")


def test_it_says_so_in_text_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tmp_path), "--json"]) == 2
    assert "usage: padpolicy info PATH; got" in capsys.readouterr().err


def test_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a dataset .* nor a policy .* nor a training run"):
        info(tmp_path)
