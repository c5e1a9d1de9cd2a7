"""Diffusion Policy's eyes: a ResNet-18 that is trained with the policy, read out as the places of 32 keypoints.

Source:  arXiv:2303.04137, section III.B; spatial softmax: arXiv:1509.06113; GroupNorm in BatchNorm's place, because
averaged weights (EMA) and averages over a batch do not go together.

Letters: N pictures, K keypoints, h w feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KEYPOINTS, FEATURES = 32, 64  # per picture


def spatial_softmax(x_NKhw: Tensor) -> Tensor:
    """Where each map is brightest: the mean place under its softmax, (N, K, 2) as (x, y), each from -1 to 1."""
    height, width = x_NKhw.shape[-2:]
    share = x_NKhw.float().flatten(2).softmax(-1).unflatten(2, (height, width))
    x = (share.sum(2) * torch.linspace(-1, 1, width, device=share.device)).sum(-1)
    y = (share.sum(3) * torch.linspace(-1, 1, height, device=share.device)).sum(-1)
    return torch.stack([x, y], -1)


def smallest_side(stages: int) -> int:
    """Pixels: smaller pictures end as one single place, which says nothing."""
    return 2 ** (stages + 1) + 1


class ResnetEye(nn.Module):
    """One camera: pixels (N, 3, H, W) in [-1, 1], -> features (N, 64).

    Args:  stages: of the four; fewer make a smaller eye of finer maps (2: 0.7 M weights, maps of H / 8).
    """

    def __init__(self, stages: int = 4):
        from torchvision.models import resnet18  # takes seconds to import, and other families do without it

        super().__init__()
        whole = resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels))
        self.body = nn.Sequential(*list(whole.children())[: 4 + stages])  # without its mean over places and its classes
        self.points = nn.Conv2d(64 * 2 ** (stages - 1), KEYPOINTS, 1)
        self.out = nn.Sequential(nn.Linear(2 * KEYPOINTS, FEATURES), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.out(spatial_softmax(self.points(self.body(x))).flatten(1))
