"""A bare diffusion transformer and its training step: what our training speed is measured against.

No modalities, no masks of presence, no modes, no draws that can be repeated: linear in, adaLN-Zero blocks (DiT,
arXiv:2212.09748), linear out. Of ours it has what costs time by nature: the number of tokens, the width, depth and
heads, the two attention calls per block (context on itself, noised tokens on both), the type and the attention kernel.

Letters: B batch, C context tokens, N noised tokens, D width, H heads, I numbers per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUTS = 64  # numbers per token: a patch of 2 x 2 latent pixels of 16 channels


@dataclass(frozen=True)
class Size:
    """What has to be equal for a fair comparison."""

    batch: int
    context: int  # tokens
    noised: int  # tokens
    width: int
    depth: int
    heads: int
    mlp_ratio: float


class BareBlock(nn.Module):
    """Attention and MLP under adaLN-Zero, for context and noised tokens alike."""

    def __init__(self, size: Size):
        super().__init__()
        width, hidden = size.width, int(size.width * size.mlp_ratio)
        self.heads = size.heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self, x: Tensor, cond: Tensor, mask: Tensor, context: tuple[Tensor, Tensor] | None = None, last: bool = False
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, N, D); `context`: keys and values that may be seen as well; `last`: only keys and values are wanted."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond).chunk(6, dim=-1)
        h = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if last:
            return x, (k, v)
        keys, values = (k, v) if context is None else (torch.cat([context[0], k], 2), torch.cat([context[1], v], 2))
        x = x + gate1 * self.proj(attention(q, keys, values, mask).transpose(1, 2).flatten(2))
        x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return x, (k, v)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The same kernel as ours: on the CPU that of float32, whose backward pass is faster than that of bfloat16."""
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(q.dtype)


class BareDiT(nn.Module):
    """Context and noised tokens in, the noised tokens' velocity out."""

    def __init__(self, size: Size):
        super().__init__()
        width = size.width
        self.context_in, self.noised_in = nn.Linear(INPUTS, width), nn.Linear(INPUTS, width)
        self.context_place = nn.Parameter(0.02 * torch.randn(size.context, width))
        self.noised_place = nn.Parameter(0.02 * torch.randn(size.noised, width))
        self.context_cond = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList([BareBlock(size) for _ in range(size.depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, INPUTS)

    def forward(self, context: Tensor, x: Tensor, tau: Tensor, context_mask: Tensor, mask: Tensor) -> Tensor:
        """context (B, C, I), x (B, N, I), tau (B,), masks broadcastable to (B, 1, C, C) and (B, 1, N, C + N)."""
        c, x = self.context_in(context), self.noised_in(x)
        c, x = c + self.context_place.to(c.dtype), x + self.noised_place.to(x.dtype)
        angle = 1000 * tau[:, None] * torch.exp(-9.2 * torch.arange(128, device=tau.device) / 128)
        cond = F.silu(self.time(torch.cat([angle.cos(), angle.sin()], 1)))[:, None]
        context_cond = F.silu(self.context_cond).expand(len(x), -1, -1)
        kept = []
        for i, block in enumerate(self.blocks):
            c, keys_values = block(c, context_cond, context_mask, last=i == len(self.blocks) - 1)
            kept.append(keys_values)
        for block, keys_values in zip(self.blocks, kept, strict=True):
            x, _ = block(x, cond, mask, keys_values)
        shift, scale = self.modulation(cond).chunk(2, dim=-1)
        return self.out(self.norm(x) * (1 + scale) + shift)


class BareTraining:
    """Flow matching on random tokens; a call is one step of AdamW."""

    def __init__(self, size: Size, action_tokens: int, device: torch.device, bf16: bool):
        """action_tokens: the last ones of the noised; they see the context and themselves, not the future."""
        self.device, self.bf16 = device, bf16
        self.model = BareDiT(size).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01, foreach=True)
        self.context = torch.randn(size.batch, size.context, INPUTS, device=device)
        self.x0 = torch.randn(size.batch, size.noised, INPUTS, device=device)
        self.context_mask = torch.ones(size.batch, 1, 1, size.context, dtype=torch.bool, device=device)
        total, future = size.context + size.noised, size.noised - action_tokens
        self.mask = torch.ones(size.batch, 1, size.noised, total, dtype=torch.bool, device=device)
        self.mask[:, :, future:, size.context : size.context + future] = False

    def __call__(self) -> None:
        noise, tau = torch.randn_like(self.x0), torch.rand(len(self.x0), device=self.device)
        x = torch.lerp(self.x0, noise, tau[:, None, None])
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.model(self.context, x, tau, self.context_mask, self.mask)
        F.mse_loss(out.float(), noise - self.x0).backward()
        self.optimizer.step()
