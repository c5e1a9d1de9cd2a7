"""DiT and PAD as published: one sequence of noised tokens, with all that is known stacked into them.

    rgb    the noised latents of all future frames, then the present one, as channels of one picture; p x p patches
    pose   all noised actions, then the present pose, as one token; or a token for each action
    depth  as rgb, without an autoencoder and in larger patches

    [ rgb | pose | depth ]  ->  blocks under time + text  ->  a head for each: the noise of every number, its variance

What is absent is zeros in the same sequence, and there is one noise time. With class labels in the place of the text,
and neither poses, depth nor a present, this is DiT. Parameters have the names of the released weights.

Source:  DiT, arXiv:2212.09748; PAD, arXiv:2411.18179.
Letters: B batch, N tokens, D width, F future frames, C h w latent, S side of reduced depth, T action steps,
A action dims, P proprio dims, E numbers that say what is asked for, p patch side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from padpolicy.batch import present
from padpolicy.model.dit import stream
from padpolicy.model.layers import Attention, ScalarEmbedding, modulate
from padpolicy.model.masks import NOISED, Mode
from padpolicy.model.network import Denoiser, Observed

_SEES = {"future_rgb": ("future_rgb",), "future_depth": NOISED, "action": NOISED}
MODES = {"joint": Mode(NOISED, (), _SEES), "video": Mode(("future_rgb",), (), _SEES)}


def line_positions(x: Tensor, width: int) -> Tensor:
    """Fixed positions on a line, (n,) -> (n, width) float32: sines first, unlike the embedding of noise time."""
    angle = x.double()[:, None] * 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    return torch.cat([angle.sin(), angle.cos()], -1).float()


def square_positions(cells: int, apart: float, width: int) -> Tensor:
    """Fixed positions of a row-major square, (cells^2, width): half the numbers for the column, half for the row.

    Args:  apart: from one cell to the next; 1 for rgb, and as many rgb cells as a depth cell is wide.
    """
    row, column = torch.meshgrid(*[torch.arange(cells) * apart] * 2, indexing="ij")
    return torch.cat([line_positions(column.flatten(), width // 2), line_positions(row.flatten(), width // 2)], -1)


def _modulation(width: int, rows: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, rows * width))


class PadBlock(nn.Module):
    """A block under one of the four conditionings of DiT (arXiv:2212.09748, figure 3).

    "adaln_zero": time and text shift and scale what enters attention and MLP, and gate what leaves them; with zero
    gates at the start a block is the identity.   "adaln": the same without gates.   "cross_attention": a further
    attention to the two of them.   "in_context": none here; the two are tokens of the sequence.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, conditioning: str):
        super().__init__()
        hidden, rows = int(width * mlp_ratio), {"adaln_zero": 6, "adaln": 4}.get(conditioning, 0)
        self.norm1, self.norm2 = (nn.LayerNorm(width, 1e-6, elementwise_affine=not rows) for _ in range(2))
        self.attn = Attention(width, heads)
        layers = {"fc1": nn.Linear(width, hidden), "act": nn.GELU("tanh"), "fc2": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.adaLN_modulation = _modulation(width, rows) if rows else None
        self.norm_cross = self.cross = None
        if conditioning == "cross_attention":
            self.norm_cross = nn.LayerNorm(width, 1e-6)
            self.cross = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x_BND: Tensor, asked_B2D: Tensor, see_NN: Tensor | None) -> Tensor:
        """asked_B2D: the noise time and what is asked for.   see_NN: rows see columns; None: all see all."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self._rows(asked_B2D.sum(1, keepdim=True))
        q, k, v = self.attn.split(modulate(self.norm1(x_BND), shift1, scale1))
        x_BND = x_BND + gate1 * self.attn.attend(q, k, v, see_NN)
        if self.cross is not None:
            x_BND = x_BND + self.cross(self.norm_cross(x_BND), asked_B2D, asked_B2D, need_weights=False)[0]
        return x_BND + gate2 * self.mlp(modulate(self.norm2(x_BND), shift2, scale2))

    def _rows(self, cond_B1D: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the MLP."""
        nothing, all_of_it = cond_B1D.new_zeros(1), cond_B1D.new_ones(1)
        if self.adaLN_modulation is None:
            return (nothing, nothing, all_of_it) * 2
        rows = self.adaLN_modulation(cond_B1D)
        if rows.shape[-1] == 6 * cond_B1D.shape[-1]:
            return rows.chunk(6, -1)
        shift1, scale1, shift2, scale2 = rows.chunk(4, -1)
        return shift1, scale1, all_of_it, shift2, scale2, all_of_it


class PadFinalLayer(nn.Module):
    """Norm, modulation and a linear answer for each kind of token: "" rgb, "a_" poses, "d_" depth.

    Args:  out: kind -> numbers per token.   adaptive: whether time and text shift and scale, as they do in the blocks.
    """

    def __init__(self, width: int, out: Mapping[str, int], adaptive: bool):
        super().__init__()
        for kind, numbers in out.items():
            self.add_module(f"{kind}norm_final", nn.LayerNorm(width, 1e-6, elementwise_affine=not adaptive))
            self.add_module(f"{kind}linear", nn.Linear(width, numbers))
            self.add_module(f"{kind}adaLN_modulation", _modulation(width, 2) if adaptive else None)

    def forward(self, kind: str, x_BND: Tensor, cond_B1D: Tensor) -> Tensor:
        x_BND = getattr(self, f"{kind}norm_final")(x_BND)
        if (modulation := getattr(self, f"{kind}adaLN_modulation")) is not None:
            x_BND = modulate(x_BND, *modulation(cond_B1D).chunk(2, -1))
        return getattr(self, f"{kind}linear")(x_BND)


@dataclass
class Known:
    """What stands beside the noise in the same tokens; zeros where it is absent."""

    rgb: Tensor  # (B, C, h, w) the present latent
    depth: Tensor | None  # (B, 1, S, S); None: there is no depth at all
    pose: Tensor  # (B, P)
    said: Tensor  # (B, E) pooled text


class PadNetwork(Denoiser):
    """See the module.

    Args:  said: nn.Linear of the pooled text, or nn.Embedding of class labels.
           side, patch, channels: of latents.   frames: F.   camera: whose future it is; "": nothing is known (DiT).
           actions, action_dim, proprio_dim: T, A and P, 0 without poses.   one_token: for poses and the present one.
           depth_size, depth_patch: S and its patch side; 0 without depth.   depth_camera: whose.
           out_factor: answers per number, 2 with a learned variance.
           masked: rgb sees neither poses nor depth.   conditioning: see PadBlock.
           train_steps: K; the network is told DDPM's step k = K tau - 1.   recompute: less memory, more time.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        said: nn.Module,
        *,
        side: int,
        patch: int,
        channels: int,
        frames: int = 1,
        camera: str = "",
        actions: int = 0,
        action_dim: int = 0,
        proprio_dim: int = 0,
        one_token: bool = True,
        depth_size: int = 0,
        depth_patch: int = 1,
        depth_camera: str = "",
        out_factor: int = 2,
        mlp_ratio: float = 4.0,
        masked: bool = True,
        conditioning: str = "adaln_zero",
        train_steps: int = 1000,
        recompute: bool = False,
    ):
        super().__init__()
        self.modes = MODES
        self.width, self.patch, self.channels, self.frames = width, patch, channels, frames
        self.camera, self.depth_camera, self.out_factor = camera, depth_camera, out_factor
        self.actions, self.action_dim, self.proprio_dim, self.one_token = actions, action_dim, proprio_dim, one_token
        self.depth_size, self.depth_patch = depth_size, depth_patch
        self.conditioning, self.train_steps, self.recompute = conditioning, train_steps, recompute

        cells, depth_cells = side // patch, depth_size // depth_patch
        stacked = (frames + bool(camera)) * channels
        out = {"": patch**2 * frames * channels}
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(stacked, width, patch, stride=patch)})
        self.register_buffer("pos_embed", square_positions(cells, 1.0, width)[None])
        self.t_embedder = ScalarEmbedding(width, scale=1.0)
        self.y_embedder = nn.ModuleDict({"embedding_table": said})
        self.a_embedder = self.d_embedder = None
        sizes = [cells**2]
        if actions:
            tokens, numbers = (1, actions * action_dim + proprio_dim) if one_token else (actions, action_dim)
            self.a_embedder = nn.Linear(numbers, width)
            self.register_buffer("a_pos_embed", line_positions(torch.arange(tokens), width)[None])
            out["a_"] = actions * action_dim // tokens
            sizes.append(tokens)
        if depth_size:
            self.d_embedder = nn.ModuleDict({"proj": nn.Conv2d(1 + frames, width, depth_patch, stride=depth_patch)})
            self.register_buffer("d_pos_embed", square_positions(depth_cells, cells / depth_cells, width)[None])
            out["d_"] = depth_patch**2 * frames
            sizes.append(depth_cells**2)
        self.blocks = nn.ModuleList([PadBlock(width, heads, mlp_ratio, conditioning) for _ in range(depth)])
        out = {kind: out_factor * numbers for kind, numbers in out.items()}
        self.final_layer = PadFinalLayer(width, out, adaptive=conditioning.startswith("adaln"))
        self.kinds, self.sizes = list(out), sizes  # of the tokens, in their order

        asked = 2 if conditioning == "in_context" else 0
        see = torch.ones(asked + sum(sizes), asked + sum(sizes), dtype=torch.bool)
        see[: asked + sizes[0], asked + sizes[0] :] = False
        self.register_buffer("see", see if masked and len(sizes) > 1 else None, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))  # patches as DiT: a linear layer
                nn.init.zeros_(module.bias)
        said = self.y_embedder["embedding_table"]
        for weight in (said.weight, self.t_embedder.mlp[0].weight, self.t_embedder.mlp[2].weight):
            nn.init.normal_(weight, std=0.02)
        modulations = [m for name, m in self.named_modules() if name.endswith("adaLN_modulation.1")]
        for layer in (*modulations, *(getattr(self.final_layer, f"{kind}linear") for kind in self.kinds)):
            nn.init.zeros_(layer.weight)  # blocks start as the identity, and an untrained network predicts 0
            nn.init.zeros_(layer.bias)

    def predict(
        self,
        rgb_BChw: Tensor,
        step_B: Tensor,
        said_BE: Tensor,
        pose_BTA: Tensor | None = None,
        depth_BCSS: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What is published: the inputs as they enter the tokens, noised first, to the answers as they leave them.

        Args:    rgb_BChw: (B, F C + C, h, w).   step_B: DDPM's step.   said_BE: pooled text, or (B,) class labels.
                 pose_BTA: (B, 1, T A + P), or (B, T, A) where each action has a token.   depth_BCSS: (B, F + 1, S, S).
        Returns: kind -> "" (B, f F C, h, w), "a_" (B, 1, f T A) or (B, T, f A), "d_" (B, f F, S, S), f = out_factor.
        """
        tokens = [self.x_embedder["proj"](rgb_BChw).flatten(2).transpose(1, 2) + self.pos_embed]
        if self.a_embedder is not None:
            tokens.append(self.a_embedder(pose_BTA) + self.a_pos_embed)
        if self.d_embedder is not None:
            tokens.append(self.d_embedder["proj"](depth_BCSS).flatten(2).transpose(1, 2) + self.d_pos_embed)
        asked_B2D = torch.stack([self.t_embedder(step_B), self.y_embedder["embedding_table"](said_BE)], 1)
        if self.conditioning == "in_context":
            tokens.insert(0, asked_B2D)
        x_BND = stream(torch.cat(tokens, 1))
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x_BND = checkpoint(block, x_BND, asked_B2D, self.see, use_reentrant=False)
            else:
                x_BND = block(x_BND, asked_B2D, self.see)
        parts = x_BND[:, x_BND.shape[1] - sum(self.sizes) :].split(self.sizes, 1)
        cond_B1D = asked_B2D.sum(1, keepdim=True)
        out = {k: self.final_layer(k, part, cond_B1D) for k, part in zip(self.kinds, parts, strict=True)}
        out[""] = _unpatchify(out[""], self.patch)
        if "d_" in out:
            out["d_"] = _unpatchify(out["d_"], self.depth_patch)
        return out

    def context(self, observed: Observed) -> Known:
        """The present as it stands in the tokens."""
        said, presents = present(observed.text_pooled, observed.has["text"]), observed.presents
        rows, depth = len(said), None
        if self.d_embedder is not None:
            nothing = said.new_zeros(rows, 1, self.depth_size, self.depth_size)
            depth = presents.get(f"future.depth_{self.depth_camera}", nothing)
        felt = observed.proprio
        pose = said.new_zeros(rows, self.proprio_dim) if felt is None else felt[:, -1]
        return Known(presents[f"future.latent_{self.camera}"][:, 0], depth, pose, said)

    def denoise(
        self,
        mode: str,
        context: Known,
        x: Mapping[str, Tensor],
        tau: Mapping[str, Tensor],
        time_s: Mapping[str, Tensor],
        has: Mapping[str, Tensor] | None = None,
        clean_BT: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `Denoiser.denoise`. There is one noise time, the future's; seconds are not told, and a known prefix
        is seen as actions only. In "video" poses and depth are zeros, the present ones included.
        """
        rgb, depth = f"future.latent_{self.camera}", f"future.depth_{self.depth_camera}"
        step_B = ((tau["future_rgb"] * self.train_steps).round() - 1).clamp(min=0)
        draws, acts = len(step_B) // len(context.said), mode == "joint"

        def known(now: Tensor) -> Tensor:
            return now if draws == 1 else now.repeat_interleave(draws, 0)

        def noised(field: str, *shape: int) -> Tensor:
            if field not in x:
                return context.said.new_zeros(len(step_B), *shape)
            return x[field] if has is None else present(x[field], has[field])

        frames = noised(rgb, self.frames, *context.rgb.shape[1:]).flatten(1, 2)
        pose = depths = None
        if self.a_embedder is not None:
            pose = noised("action", self.actions, self.action_dim)
            if self.one_token:
                pose = torch.cat([pose.flatten(1), acts * known(context.pose)], 1)[:, None]
        if context.depth is not None:
            depths = noised(depth, self.frames, self.depth_size, self.depth_size)
            depths = torch.cat([depths, acts * known(context.depth)], 1)
        out = self.predict(torch.cat([frames, known(context.rgb)], 1), step_B, known(context.said), pose, depths)

        two = self.out_factor
        answers = {rgb: rearrange(out[""], "b (v f c) y x -> b f (v c) y x", v=two, f=self.frames)}
        if acts and "action" in x:
            answers["action"] = out["a_"]
            if self.one_token:
                answers["action"] = rearrange(out["a_"], "b 1 (v t a) -> b t (v a)", v=two, a=self.action_dim)
        if acts and depth in x:
            answers[depth] = rearrange(out["d_"], "b (v f) y x -> b f v y x", v=two)
            answers[depth] = answers[depth] if two > 1 else answers[depth][:, :, 0]
        return answers


def _unpatchify(x_BNI: Tensor, patch: int) -> Tensor:
    """Tokens of a square as pictures (B, channels, h, w); a token's numbers are (p, p, channels)."""
    side = round(x_BNI.shape[1] ** 0.5)
    return rearrange(x_BNI, "b (y x) (p q c) -> b c (y p) (x q)", y=side, p=patch, q=patch)
