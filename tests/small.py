"""A small policy with exact, instant encoders, and random batches for it: what tests of the network's laws need."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import torch

from padpolicy.batch import Batch, collate
from padpolicy.config import DiffusionConfig, EncodersConfig, ModelConfig
from padpolicy.data.normalizer import Normalizer
from padpolicy.encoders.depth import DepthScale
from padpolicy.policy import PadPolicy
from padpolicy.sample import Sample
from padpolicy.spec import PolicyConfig, PolicySpec

SIZE, CHUNK, ACTION, PROPRIO = 32, 6, 3, 4


class MeanEncoder:
    """Latents are the mean colours of 8 x 8 patches, and a fourth channel of zeros. Exactly linear."""

    channels, downsample, fingerprint = 4, 8, "mean8"

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        x = rgb.float() / 127.5 - 1
        x = x.unflatten(-2, (-1, 8)).unflatten(-4, (-1, 8)).mean((-2, -4)).movedim(-1, -3)
        return torch.cat([x, torch.zeros_like(x[..., :1, :, :])], -3)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        x = ((latent[..., :3, :, :].movedim(-3, -1) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
        return x.repeat_interleave(8, -2).repeat_interleave(8, -3)


class HashEncoder:
    """A word is a fixed random vector, a sentence the mean of its words."""

    width = pooled_width = 8
    fingerprint = "hash8"

    def encode(self, texts: list[str], max_tokens: int) -> SimpleNamespace:
        tokens = torch.zeros(len(texts), max_tokens, 8)
        mask = torch.zeros(len(texts), max_tokens, dtype=torch.bool)
        for row, text in enumerate(texts):
            for i, word in enumerate(text.split()[:max_tokens]):
                seed = int(hashlib.md5(word.encode()).hexdigest()[:8], 16)
                tokens[row, i] = torch.from_numpy(np.random.default_rng(seed).standard_normal(8).astype(np.float32))
                mask[row, i] = True
        pooled = tokens.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return SimpleNamespace(tokens=tokens, mask=mask, pooled=pooled)


def small_policy(
    seed: int = 0,
    model: dict | None = None,
    action: dict | None = None,
    cameras: tuple = ("front", "wrist"),
    **diffusion,
) -> PadPolicy:
    """A policy of two narrow blocks whose every weight is random: zero gates would make all laws trivially true."""
    spec = PolicySpec(
        cameras=list(cameras),
        depth_cameras=["front"],
        future_cameras=["front"],
        future_depth_cameras=["front"],
        image_size=SIZE,
        obs_steps=1,
        chunk_steps=CHUNK,
        dt_s=0.1,
        future_offsets_s=[0.3, 0.6],
        action_dim=ACTION,
        proprio_dim=PROPRIO,
        action=action or {},
        robot="arm",
        renderer="rays",
    )
    settings = {"width": 32, "depth": 2, "heads": 4, "glance": True, "depth_size": 8, "depth_patch": 4, **(model or {})}
    config = PolicyConfig(spec, ModelConfig(**settings), DiffusionConfig(**diffusion), EncodersConfig(text_tokens=5))
    stats = {
        "arm": {
            "action": {"center": [0.1] * ACTION, "scale": [2.0] * ACTION},
            "proprio": {"center": [0.0] * PROPRIO, "scale": [1.5] * PROPRIO},
        }
    }
    torch.manual_seed(seed)
    policy = PadPolicy(config, Normalizer(stats), DepthScale(500.0, 100.0), MeanEncoder(), HashEncoder())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return policy


def robot_sample(index: int, text: str | None = "lift the cube", seed: int = 0) -> Sample:
    """A sample with every field."""
    rng = np.random.default_rng([seed, index])

    def rgb(n: int) -> np.ndarray:
        return rng.integers(0, 256, (n, SIZE, SIZE, 3)).astype(np.uint8)

    def depth(n: int) -> np.ndarray:
        return rng.integers(0, 900, (n, SIZE, SIZE)).astype(np.uint16)

    return Sample(
        fields={
            "obs.rgb_front": rgb(1),
            "obs.rgb_wrist": rgb(1),
            "obs.depth_front": depth(1),
            "obs.proprio": rng.standard_normal((1, PROPRIO)).astype(np.float32),
            "future.rgb_front": rgb(2),
            "future.depth_front": depth(2),
            "action": rng.standard_normal((CHUNK, ACTION)).astype(np.float32),
        },
        is_pad={
            "obs": np.zeros(1, bool),
            "future": np.array([False, index % 2 == 1]),
            "action": np.arange(CHUNK) >= CHUNK - index % 3,
        },
        time_s={
            "obs": np.zeros(1, np.float32),
            "future": np.array([0.3, 0.6], np.float32),
            "action": np.arange(CHUNK, dtype=np.float32) * 0.1,
        },
        text=text,
        robot="arm",
        index=index,
    )


def video_sample(index: int, text: str | None = None) -> Sample:
    """A sample of an action-free video: pictures of one camera, perhaps a caption."""
    sample = robot_sample(index, text)
    for name in ("obs.rgb_wrist", "obs.depth_front", "obs.proprio", "future.depth_front", "action"):
        del sample.fields[name]
    del sample.is_pad["action"], sample.time_s["action"]
    sample.robot = ""
    return sample


def batch_of(*samples: Sample, seed: int = 7, step: int = 3) -> Batch:
    return collate(samples, seed, step)
