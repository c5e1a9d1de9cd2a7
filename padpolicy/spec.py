"""What a policy must be given and what it gives, and the settings that rebuild it: no torch, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from padpolicy.config import DiffusionConfig, EncodersConfig, ModelConfig


@dataclass
class PolicySpec:
    """What a policy must be given and what it gives: everything an evaluator or controller needs to know of it."""

    cameras: list[str]
    depth_cameras: list[str]
    future_cameras: list[str]
    future_depth_cameras: list[str]
    image_size: int
    obs_steps: int
    chunk_steps: int
    dt_s: float
    future_offsets_s: list[float]
    action_dim: int
    proprio_dim: int
    action: dict[str, Any]  # ActionSpec as a dict: kind, frame, rotation, gripper, names, unit (see data/actions.py)
    robot: str
    renderer: str  # which renderer drew the training images; "" if real cameras did


@dataclass
class PolicyConfig:
    """What rebuilds a policy: saved as JSON beside its weights."""

    spec: PolicySpec
    model: ModelConfig
    diffusion: DiffusionConfig
    encoders: EncodersConfig
