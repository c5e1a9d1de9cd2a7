"""A real PadPolicy (random weights) through the closed loop and the measurements: the interfaces meet."""

import fakes
import numpy as np
import pytest
import torch
from small import HashEncoder, MeanEncoder

from padpolicy.config import DiffusionConfig, EncodersConfig, EnvConfig, EvalConfig, ModelConfig
from padpolicy.data.actions import ActionSpec
from padpolicy.data.normalizer import Normalizer
from padpolicy.data.store import Episode, Store, StoreSpec
from padpolicy.encoders.depth import DepthScale
from padpolicy.evaluation.imagination import imagination_report
from padpolicy.evaluation.run import run_evaluation
from padpolicy.policy import PadPolicy
from padpolicy.spec import PolicyConfig


@pytest.fixture(scope="module")
def policy():
    spec = fakes.spec(obs_steps=1)
    model = ModelConfig(width=32, depth=1, heads=2, patch=1, depth_size=8, depth_patch=4)
    config = PolicyConfig(spec, model, DiffusionConfig(steps=2), EncodersConfig(text_tokens=3))
    stats = {"fake": {name: {"center": [0.0], "scale": [1.0]} for name in ("action", "proprio")}}
    torch.manual_seed(0)
    policy = PadPolicy(config, Normalizer(stats), DepthScale(500.0, 100.0), MeanEncoder(), HashEncoder())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return policy.eval()


def test_closed_loop(policy, tmp_path):
    env = EnvConfig(id="fakes:Fake-v0", robot="fake", renderer="rays", cameras=["front"])
    cfg = EvalConfig(checkpoint="", out=str(tmp_path), env=env, env_workers=0, num_envs=4, exec_steps=4)
    cfg.episodes_per_task, cfg.videos = 2, 1
    together = run_evaluation(cfg, policy)
    cfg.num_envs, cfg.imagine = 1, False
    alone = run_evaluation(cfg, policy)
    assert together.results["tasks"] == alone.results["tasks"]
    assert together.results["ended"] == alone.results["ended"]
    assert together.films[0].strip.imagined.shape == (16, 16, 3) and alone.films[0].strip is None
    for a, b in zip(together.films[0].frames, alone.films[0].frames, strict=True):
        np.testing.assert_array_equal(a[:, :32], b)


def test_imagination(policy, tmp_path):
    spec = StoreSpec(
        cameras={"front": {"size": [16, 16], "intrinsics": None, "extrinsics": None}},
        depth_cameras=["front"],
        proprio={"names": ["x"]},
        action=ActionSpec("delta", ["dx"], 0.1),
        robot="fake",
        renderer="rays",
        dt_s=0.1,
    )
    rng = np.random.default_rng(0)
    with Store.create(tmp_path / "store.zarr", spec) as store:
        for _ in range(5):
            action = rng.uniform(-1, 1, (14, 1)).astype(np.float32)
            x = np.cumsum(action[:, 0]) * fakes.SPEED
            arrays = {
                "rgb_front": np.stack([fakes.draw(v) for v in x]),
                "depth_front": np.full((14, 16, 16), 1000, np.uint16),
                "proprio": x[:, None].astype(np.float32),
                "action": action,
                "timestamp": np.arange(14) * 0.1,
            }
            store.append(Episode(arrays, task="go left"))
    report = imagination_report(policy, tmp_path / "store.zarr", samples=10)
    assert report["samples"] == 10 and report["candidates"] == {"min": 5, "max": 5}
    assert 0 <= report["retrieval"]["share"] <= 1 and np.isfinite(report["forward"]["error_ratio"])
    assert np.isfinite(report["inverse"]["r2"]) and np.isfinite(report["static_psnr"]["gap_db"])
    assert report == imagination_report(policy, tmp_path / "store.zarr", samples=10)
