"""The trunk: adaLN-Zero blocks over a context that is computed once and noised tokens that are denoised step by step.

Letters: B batch, C context tokens, N noised tokens, D width, H heads, E width per head.

    context  text, obs                     sees context only; its modulation knows no noise time
    noised   future_rgb future_depth action  sees [context | noised] under the mode's mask

So the keys and values of the context are the same for every denoising step: `context` returns them, `denoise` takes
them. Training calls the two one after the other; there is no other code path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from padpolicy.model.layers import Block


@dataclass
class ContextCache:
    """Keys and values of the context in every block, and which of its tokens are really there."""

    keys: list[Tensor]  # per block (B, H, C, E)
    values: list[Tensor]
    mask: Tensor | None  # (B, C) bool, True where present; None: all are


class DiT(nn.Module):
    """Args: width D; depth: number of blocks; heads; mlp_ratio; recompute: less memory, a third more time."""

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0, recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio) for _ in range(depth)])
        self.init_weights()

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.blocks:  # zero gates: every block starts as the identity (DiT, section 3.2)
            nn.init.zeros_(block.modulation.weight)
            nn.init.zeros_(block.modulation.bias)

    def context(self, x_BCD: Tensor, cond_B1D: Tensor, mask_BC: Tensor | None) -> ContextCache:
        """Runs the context tokens through all blocks and keeps each block's keys and values.

        Args:  cond_B1D: modulation input of the context, through SiLU; must not depend on the noise time.
        """
        x_BCD = stream(x_BCD)
        see = None if mask_BC is None else mask_BC[:, None, None, :]
        cache = ContextCache([], [], mask_BC)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x_BCD, k, v = self._run(_context_block, block, x_BCD, cond_B1D, see, i == last)
            cache.keys.append(k)
            cache.values.append(v)
        return cache

    def denoise(
        self,
        x_BND: Tensor,
        cond_BRD: Tensor,
        select_NR: Tensor | None,
        cache: ContextCache,
        see: Tensor | None,
    ) -> Tensor:
        """Runs the noised tokens through all blocks.

        Args:  cond_BRD: the R modulation rows (a clean and a noised one per group), through SiLU.
               select_NR: which row each token takes, one-hot (N, R) or (B, N, R); None: there is one row for all.
               see: bool, broadcastable to (B, 1, N, C + N), or None: everything may be seen.
        """
        x_BND = stream(x_BND)
        for block, k, v in zip(self.blocks, cache.keys, cache.values, strict=True):
            x_BND = self._run(_noised_block, block, x_BND, cond_BRD, select_NR, k, v, see)
        return x_BND

    def _run(self, function, *args):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)


def _context_block(
    block: Block, x: Tensor, cond: Tensor, see: Tensor | None, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    mod = block.modulation(cond).chunk(6, dim=-1)
    q, k, v = block.queries(x, mod)
    if last:  # nobody reads the context after the last block: only its keys and values count
        return x, k, v
    return block.finish(x, block.attn.attend(q, k, v, see), mod), k, v


def _noised_block(
    block: Block,
    x: Tensor,
    cond: Tensor,
    select: Tensor | None,
    k_ctx: Tensor,
    v_ctx: Tensor,
    see: Tensor | None,
) -> Tensor:
    mod = per_token(block.modulation(cond), select).chunk(6, dim=-1)
    q, k, v = block.queries(x, mod)
    k, v = torch.cat([k_ctx, k], dim=2), torch.cat([v_ctx, v], dim=2)
    return block.finish(x, block.attn.attend(q, k, v, see), mod)


def stream(x: Tensor) -> Tensor:
    """The residual stream in autocast's type: half the memory traffic, and no cast in front of every product."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def per_token(rows_BRD: Tensor, select_NR: Tensor | None) -> Tensor:
    """Hands each token its row. A product with a one-hot matrix is exact, and its gradient is a product as well."""
    return rows_BRD if select_NR is None else select_NR.to(rows_BRD.dtype) @ rows_BRD
