"""Estimated actions: those that mode `inverse` says of the same frames, at the policy's rate, and marked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small import small_policy
from tiny_run import make_store

from padpolicy import label as module
from padpolicy import saving
from padpolicy.batch import collate
from padpolicy.config import ConfigError, LabelConfig
from padpolicy.data.dataset import open_source
from padpolicy.data.store import Store
from padpolicy.data.validate import validate
from padpolicy.info import info


@pytest.fixture
def policy(monkeypatch):
    policy = small_policy().eval()
    policy.config.spec.cameras = ["front"]
    policy.config.spec.action = {"kind": "delta", "names": ["x", "y", "grip"], "dt_s": 0.1, "gripper": "binary"}
    policy.config.spec.robot = "arm"
    monkeypatch.setattr(saving, "load_policy", lambda name, device: policy)
    monkeypatch.setattr(saving, "find_policy", Path)
    return policy


def settings(tmp_path, **changes):
    return LabelConfig(
        **{"path": str(tmp_path / "s.zarr"), "checkpoint": "p", "out": str(tmp_path / "out.zarr")} | changes
    )


def test_actions_are_those_of_inverse_and_say_so(tmp_path, policy):
    make_store(tmp_path / "s.zarr", robot=False)
    cfg = settings(tmp_path)
    out = Store.open(module.label(cfg))
    theirs = Store.open(cfg.path)
    assert out.n_episodes == theirs.n_episodes and "proprio" not in out.fields
    assert "estimated" in out.attrs and "estimated" in str(out.meta["episode_source"][0])
    np.testing.assert_array_equal(out.read("rgb_front", 0, 14), theirs.read("rgb_front", 0, 14))
    source = open_source(cfg.path, module._as_trained(policy, cfg), action_free=True)
    ahead = round(policy.spec.future_offsets_s[-1] / policy.spec.dt_s)
    starts = [*range(0, 13 - ahead, ahead)]
    starts += [13 - ahead] if starts[-1] + ahead < 13 else []
    samples = [source.sample(k, np.random.default_rng(0)) for k in starts]
    for sample in samples:
        sample.robot = "arm"
    read = policy.predict(
        collate(samples),
        mode="inverse",
        future={"front": torch.from_numpy(np.stack([s.fields["future.rgb_front"] for s in samples]))},
        generator=torch.Generator().manual_seed(0),
    ).action.numpy()
    got = out.read("action", 0, 14)
    read[..., 2] = read[..., 2].clip(0, 1)  # what a gripper can be told
    np.testing.assert_allclose(got[:ahead], read[0, :ahead], rtol=1e-5)
    np.testing.assert_allclose(got[13 - ahead : 13], read[-1, :ahead], rtol=1e-5)
    assert (got[13, :2] == 0).all() and got[13, 2] == got[12, 2]  # nothing follows the last frame
    assert "estimated (inverse, p of p)" in info(out.path)
    assert not [finding for finding in validate(out.path) if finding.level == "error"]


def test_it_goes_on_where_it_stopped(tmp_path, policy, monkeypatch):
    make_store(tmp_path / "s.zarr", robot=False)
    whole = Store.open(module.label(settings(tmp_path, out=str(tmp_path / "whole.zarr"))))

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.label(settings(tmp_path), stop)
    out = Store.open(module.label(settings(tmp_path)))
    np.testing.assert_array_equal(out.read("action", 0, out.n_rows), whole.read("action", 0, whole.n_rows))
    with pytest.raises(ConfigError, match="is not .* labelled by other"):
        module.label(settings(tmp_path, checkpoint="other"))


def test_a_policy_that_never_learned_it_is_refused(tmp_path, policy):
    make_store(tmp_path / "s.zarr", robot=False)
    policy.config.diffusion.modes = {"policy": 1.0, "inverse": 0.0}
    with pytest.raises(ConfigError, match="never learned which actions lead"):
        module.label(settings(tmp_path))
