"""The parts a block is made of: positions, embeddings of time, attention, MLP and adaLN-Zero modulation.

Letters: B batch, N query tokens, M key tokens, D width, H heads, E width per head.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sincos(x: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Sinusoidal features of real numbers: (...,) -> (..., width), cosines first, wavelengths 2 pi to 2 pi `longest`.

    Source:  "Attention is all you need", arXiv:1706.03762, section 3.5; order as in DiT's released code.
    """
    half = width // 2
    frequency = torch.exp(-math.log(longest) * torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = x.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def grid_positions(rows: int, columns: int, width: int, device: torch.device | None = None) -> Tensor:
    """Fixed 2-D positions of a row-major grid, (rows * columns, width): half the channels for x, half for y.

    Coordinates run over [0, 16) whatever the resolution, so that grids of different sizes (two cameras, rgb and its
    coarser depth) put the same place of the picture at the same coordinate.
    """
    y = (torch.arange(rows, device=device) + 0.5) / rows * 16
    x = (torch.arange(columns, device=device) + 0.5) / columns * 16
    y_grid, x_grid = torch.meshgrid(y, x, indexing="ij")
    return torch.cat([sincos(x_grid, width // 2), sincos(y_grid, width // 2)], dim=-1).reshape(rows * columns, width)


kept_grid_positions = lru_cache(maxsize=64)(grid_positions)  # one tensor for all who ask: not to be written into


class ScalarEmbedding(nn.Module):
    """A real number as a vector: sinusoidal features, then a two-layer MLP. (...,) -> (..., D).

    Args:  scale: what one unit is multiplied by before the features, so that the range of interest covers them.
    """

    def __init__(self, width: int, scale: float, features: int = 256):
        super().__init__()
        self.scale, self.features = scale, features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(sincos(x * self.scale, self.features).to(self.mlp[0].weight.dtype))


def modulate(x_BND: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: shift and scale are (B, 1, D) for a whole group or (B, N, D) per token."""
    return torch.addcmul(shift, x_BND, 1 + scale)


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be asked for apart, because the context's are kept."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, N, E)."""
        qkv = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return qkv.unbind(0)  # its gradient is one stack; indexing would fill three tensors with zeros

    def attend(self, q_BHNE: Tensor, k_BHME: Tensor, v_BHME: Tensor, mask: Tensor | None) -> Tensor:
        """mask: bool, broadcastable to (B, 1, N, M), True where a query may see a key; None: all may."""
        if q_BHNE.device.type == "cpu" and q_BHNE.dtype == torch.bfloat16:
            # measured: the CPU kernel's backward pass takes 3.5 times as long in bfloat16 as in float32
            with torch.autocast("cpu", enabled=False):
                out = F.scaled_dot_product_attention(q_BHNE.float(), k_BHME.float(), v_BHME.float(), attn_mask=mask)
            out = out.to(q_BHNE.dtype)
        else:
            out = F.scaled_dot_product_attention(q_BHNE, k_BHME, v_BHME, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A DiT block (arXiv:2212.09748, figure 3, adaLN-Zero). Context and noised tokens pass through the same weights."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        # The exact GELU: DiT's tanh form differs by less than 1e-3 and takes a CPU five times as long (measured).
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.modulation = nn.Linear(width, 6 * width)

    def queries(self, x_BND: Tensor, mod: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens under their modulation."""
        return self.attn.split(modulate(self.norm1(x_BND), mod[0], mod[1]))

    def finish(self, x_BND: Tensor, attended_BND: Tensor, mod: tuple[Tensor, ...]) -> Tensor:
        """The residual sums: gated attention, then the gated MLP."""
        x_BND = torch.addcmul(x_BND, mod[2], attended_BND)
        return torch.addcmul(x_BND, mod[5], self.mlp(modulate(self.norm2(x_BND), mod[3], mod[4])))


class FinalLayer(nn.Module):
    """adaLN and a linear head, zero at the start so that an untrained network predicts 0."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, out)

    def forward(self, x_BND: Tensor, cond: Tensor) -> Tensor:
        """cond: (B, 1, D) or (B, N, D), already through SiLU."""
        shift, scale = self.modulation(cond).chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x_BND), shift, scale))
