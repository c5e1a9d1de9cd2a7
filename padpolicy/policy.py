"""The small interface everything else sees, and PadPolicy behind it (encoders + normaliser + model + diffusion).

    obs_steps            chunk_steps
    |o o O|              |a a a a a a a a a a a a a a a a|
          ^ now           \\_ exec_steps _/ then plan again
                                            F F   future frames at future_offsets_s
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from padpolicy.batch import Batch


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
class LossTerms:
    """Per modality ("action", "rgb", "depth"): the mean over each sample's valid elements, and which samples have any."""

    value: dict[str, Tensor]  # name -> (B,) float32, 0 where not valid
    valid: dict[str, Tensor]  # name -> (B,) bool
    weight: dict[str, float]


@dataclass
class Prediction:
    """What `predict` returns. Absent parts are None or empty."""

    action: Tensor | None  # (B, T, A) real environment actions, float32
    future_latent: dict[str, Tensor] = field(default_factory=dict)  # camera -> (B, F, C, h, w) unit-variance latents
    future_depth: dict[str, Tensor] = field(default_factory=dict)  # camera -> (B, F, h, w) float32 millimetres
    timings_ms: dict[str, float] = field(default_factory=dict)  # encode, context, denoise, total


class Policy(Protocol):
    """Stateless: the same call gives the same answer. State (history, chunks) lives in control/chunking.py."""

    spec: PolicySpec

    def valid_counts(self, batch: Batch) -> dict[str, Tensor]:
        """Per modality, how many samples of the batch will have a loss. Cheap: runs no network."""

    def loss(self, batch: Batch) -> LossTerms:
        """Random draws (mode, time, noise) are functions of (batch.seed, batch.step, batch.index)."""

    def predict(
        self,
        obs: Batch,
        *,
        mode: str = "policy",
        actions: Tensor | None = None,  # (B, T, A) real actions; mode "forward"
        future: dict[str, Tensor] | None = None,  # camera -> (B, F, H, W, 3) uint8; mode "inverse"
        prefix: Tensor | None = None,  # (B, T, A) real actions of which the first prefix_len are kept
        prefix_len: Tensor | None = None,  # (B,) int64
        guidance: float | None = None,
        steps: int | None = None,
        noise: dict[str, Tensor] | None = None,
        generator: Any = None,
    ) -> Prediction:
        """Denoises what the mode asks for (policy, joint, video, forward, inverse)."""

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (..., C, h, w) as pictures (..., H, W, 3) uint8."""
