"""scripts/train_eye.py: the right targets, and only the eye is taught."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from padpolicy import config
from padpolicy.training.build import build_policy, open_data
from padpolicy.training.distributed import World

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SETTINGS = ["experiment=tiny", "model.eyes=stem", "model.glance=true"]


@pytest.fixture(scope="module")
def fresh():
    cfg = config.load("train", [*SETTINGS, "out=unused"])
    torch.manual_seed(cfg.seed)
    data = open_data(cfg, "cpu", World())
    return build_policy(cfg, data, "cpu"), data.mixture.robot_sources[0]


def test_the_target_is_the_pose_at_the_next_key_moment(fresh, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from train_eye import Moments

    _, source = fresh
    store, moments = source.store, Moments(source)
    gripper = store.read("action", 0, store.n_rows)[:, 4] > 0.5
    proprio = store.read("proprio", 0, store.n_rows)
    changes = 0
    for episode in range(store.n_episodes):
        start, stop = store.bounds(episode)
        for row in range(start, stop):
            key = next((r for r in range(max(row, start + 1), stop) if gripper[r] != gripper[r - 1]), stop - 1)
            changes += key < stop - 1
            assert np.array_equal(moments.target[row], proprio[key])
    assert changes > 20  # rows before a change: both kinds of key moments were seen


def test_a_policy_without_an_eye_is_an_error():
    command = [sys.executable, str(SCRIPTS / "train_eye.py"), "experiment=tiny", "out=unused"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "model.glance=false: this policy has no glance to teach. Set model.glance=true." in done.stderr


def test_only_the_eye_is_taught(fresh, tmp_path):
    out = tmp_path / "eye"
    command = [sys.executable, str(SCRIPTS / "train_eye.py"), *SETTINGS, f"out={out}", "--steps", "3", "--batch", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = fresh[0].state_dict(), load_file(out / "model.safetensors")
    changed = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        "stem",
        "glance",
        "camera",
        "kind",
        "seconds",
        "proprio_in",
        "pooled_in",
        "null_pooled",
        "depth_in",
    }
