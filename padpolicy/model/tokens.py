"""Fields into tokens, and noised tokens back into fields: patches, positions, seconds, cameras.

Letters: B batch, O time steps of a field, C latent channels, h w latent size, N tokens, D width, P proprio dims,
A action dims, S side of a reduced depth image, p patch side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from padpolicy.model.layers import FinalLayer, ScalarEmbedding, grid_positions, kept_grid_positions

UNKNOWN_CAMERA = 0  # row of the camera table for names that were never trained


class Stem(nn.Module):
    """A small trainable eye: four strided convolutions, pixels (N, channels, H, W) to (N, D, H/16, W/16)."""

    def __init__(self, width: int, channels: int = 3):
        super().__init__()
        sides = [channels, width // 8, width // 4, width // 2, width]
        layers: list[nn.Module] = []
        for before, after in zip(sides[:-1], sides[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.SiLU()]
        self.net = nn.Sequential(*layers[:-2])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Glance(nn.Module):
    """Where the instruction points: one look over the observed tokens, with the sentence and the robot's pose as query.

    Finding the thing that is meant takes two steps, words to colours and colours to places. A transformer of a few
    blocks learns that slowly from actions alone; this one attention learns it in minutes (scripts/train_eye.py).
    Its answer is added to the modulation of all noised tokens. It starts as zero.
    """

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.key_value = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width))
        self.think = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width), nn.GELU())
        self.out = nn.Linear(2 * width, width)

    def forward(self, x_BND: Tensor, mask_BN: Tensor, asked_B1D: Tensor) -> Tensor:
        """What was found, (B, 1, 2 D), before `out`.   mask_BN: which tokens are there; asked_B1D: the query."""
        q = self.query(asked_B1D).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(x_BND).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        something_B1 = mask_BN.any(1, keepdim=True)
        see = (mask_BN | ~something_B1)[:, None, None]  # a row without keys would be NaN
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=see).transpose(1, 2).flatten(2)
        seen = torch.where(something_B1[..., None], seen, 0)
        return self.think(torch.cat([seen, asked_B1D.to(seen.dtype)], -1))


class Tokens(nn.Module):
    """Every way in and out of the trunk.

    Args:  width: D.   channels: C of the latents.   patch: latent pixels per token side.
           depth_patch: reduced depth pixels per token side.   action_dim, proprio_dim: A, P.
           text_width: of the text tower's token embeddings; pooled_width: of its sentence embedding.
           cameras: names with an embedding of their own; all others share one.
           out_factor: 2 if the network also predicts a variance, else 1.
           stem: channels of observed pixels that the trainable eye takes; 0: there is none.
           coarse: cameras whose eye gives one token for each 2 x 2 of the others'.
           glance: add the look that finds where the instruction points.
           prefix_sum: add the way in for what a known prefix of the actions adds up to.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        patch: int,
        depth_patch: int,
        action_dim: int,
        proprio_dim: int,
        text_width: int,
        pooled_width: int,
        cameras: Sequence[str],
        out_factor: int = 1,
        stem: int = 0,
        coarse: Sequence[str] = (),
        glance: bool = False,
        prefix_sum: bool = False,
    ):
        super().__init__()
        self.width, self.patch, self.depth_patch = width, patch, depth_patch
        self.camera_row = {name: i + 1 for i, name in enumerate(cameras)}
        self.out_factor = out_factor

        self.text_in = nn.Linear(text_width, width)
        self.pooled_in = nn.Linear(pooled_width, width)
        self.null_text = nn.Parameter(torch.zeros(1, 1, width))  # the one token of a missing instruction
        self.null_pooled = nn.Parameter(torch.zeros(1, 1, width))
        self.rgb_in = nn.Linear(channels * patch**2, width)  # observed and future latents share the eye
        self.stem = Stem(width, stem) if stem else None
        self.coarse = nn.ModuleDict({camera: nn.Conv2d(width, width, 2, stride=2) for camera in coarse if stem})
        self.glance = Glance(width) if glance else None
        self.depth_in = nn.Linear(2 * depth_patch**2, width)  # value and validity
        self.rgb_present = nn.Linear(channels * patch**2, width, bias=False)  # what a future frame changes from
        self.depth_present = nn.Linear(depth_patch**2, width, bias=False)
        self.proprio_in = nn.Linear(max(proprio_dim, 1), width)
        self.action_in = nn.Linear(action_dim, width)
        self.prefix_in = nn.Linear(action_dim + 1, width, bias=False) if prefix_sum else None
        self.action_summary = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.summary_out = nn.Linear(width, width)

        self.camera = nn.Embedding(len(cameras) + 1, width)
        self.kind = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(width))
                for name in ("obs_rgb", "obs_depth", "proprio", "future_rgb", "future_depth", "action")
            }
        )
        self.seconds = ScalarEmbedding(
            width, scale=100.0
        )  # shared by future and action: the same second looks the same
        self.heads = nn.ModuleDict(
            {
                "future_rgb": FinalLayer(width, channels * patch**2 * out_factor),
                "future_depth": FinalLayer(width, depth_patch**2 * out_factor),
                "action": FinalLayer(width, action_dim * out_factor),
            }
        )
        self.init_weights()

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for parameter in (self.camera.weight, self.null_text, self.null_pooled, *self.kind.values()):
            nn.init.normal_(parameter, std=0.02)  # as DiT's label table
        for present in (self.rgb_present, self.depth_present):
            nn.init.zeros_(present.weight)
        nn.init.zeros_(self.summary_out.weight)
        if self.prefix_in is not None:
            nn.init.zeros_(self.prefix_in.weight)
        if self.glance is not None:
            nn.init.zeros_(self.glance.out.weight)
        for head in self.heads.values():  # an untrained network predicts exactly 0
            for layer in (head.modulation, head.linear):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    # ------------------------------------------------------------------------------------------------ in

    def when(self, time_s: Tensor) -> Tensor:
        """Seconds (B, O) as vectors (B, O, D). What this has returned passes: once a plan is enough."""
        return self.seconds(time_s) if time_s.ndim == 2 else time_s

    def text(self, tokens_BND: Tensor, mask_BN: Tensor, has_B: Tensor) -> tuple[Tensor, Tensor]:
        """Instruction tokens, preceded by the null token that is seen only where the text is missing."""
        tokens = torch.cat([self.null_text.expand(len(has_B), 1, -1), self.text_in(tokens_BND)], 1)
        return tokens, torch.cat([~has_B[:, None], mask_BN & has_B[:, None]], 1)

    def pooled(self, pooled_BD: Tensor, has_B: Tensor) -> Tensor:
        """The sentence as one modulation vector (B, 1, D)."""
        return torch.where(has_B[:, None, None], self.pooled_in(pooled_BD)[:, None], self.null_pooled)

    def latents(self, kind: str, camera: str, x_BOChw: Tensor, time_s_BO: Tensor) -> Tensor:
        """Latent frames of one camera, (B, O * h/p * w/p, D)."""
        p = self.patch
        rows, columns = x_BOChw.shape[-2] // p, x_BOChw.shape[-1] // p
        x = self.rgb_in(rearrange(x_BOChw, "b o c (y p) (x q) -> b o (y x) (c p q)", p=p, q=p))
        return self._place(kind, camera, x, rows, columns, time_s_BO)

    def pixels(self, camera: str, x_BOHWC: Tensor, time_s_BO: Tensor) -> Tensor:
        """Observed pixels through the trainable stem, (B, O * H/16 * W/16, D), coarse ones a quarter."""
        b = len(x_BOHWC)
        y = self.stem(rearrange(x_BOHWC, "b o y x c -> (b o) c y x"))
        y = self.coarse[camera](y) if camera in self.coarse else y
        rows, columns = y.shape[-2:]
        return self._place("obs_rgb", camera, rearrange(y, "(b o) d y x -> b o (y x) d", b=b), rows, columns, time_s_BO)

    def depth(self, kind: str, camera: str, x_BOSS: Tensor, valid_BOSS: Tensor, time_s_BO: Tensor) -> Tensor:
        """Standardised, reduced depth and its validity, (B, O * (S/p)^2, D)."""
        p = self.depth_patch
        pair = torch.stack([x_BOSS, valid_BOSS.to(x_BOSS.dtype)], 2)
        rows, columns = x_BOSS.shape[-2] // p, x_BOSS.shape[-1] // p
        x = self.depth_in(rearrange(pair, "b o c (y p) (x q) -> b o (y x) (c p q)", p=p, q=p))
        return self._place(kind, camera, x, rows, columns, time_s_BO)

    def present(self, group: str, x_B1: Tensor) -> Tensor:
        """The newest frame behind a future field, to be added to the tokens of each of its frames: (B, N, D)."""
        if group == "future_depth":
            p = self.depth_patch
            return self.depth_present(rearrange(x_B1, "b 1 (y p) (x q) -> b (y x) (p q)", p=p, q=p))
        p = self.patch
        return self.rgb_present(rearrange(x_B1, "b 1 c (y p) (x q) -> b (y x) (c p q)", p=p, q=p))

    def proprio(self, x_BOP: Tensor, time_s_BO: Tensor) -> Tensor:
        """Normalised robot state, one token per observation step."""
        return self.proprio_in(x_BOP) + self.when(time_s_BO) + self.kind["proprio"]

    def action(self, x_BTA: Tensor, time_s_BT: Tensor) -> Tensor:
        """Normalised actions, one token per step."""
        return self.action_in(x_BTA) + self.when(time_s_BT) + self.kind["action"]

    def after(self, x_BTA: Tensor, clean_BT: Tensor) -> Tensor:
        """What the actions behind a known prefix are told of it, (B, T, D): its sum and its share of the chunk."""
        if self.prefix_in is None:
            return x_BTA.new_zeros(1)
        total_BA = (x_BTA * clean_BT[..., None]).sum(1)
        told_BD = self.prefix_in(torch.cat([total_BA, clean_BT.to(x_BTA.dtype).mean(1, keepdim=True)], -1))
        return told_BD[:, None] * ~clean_BT[..., None]

    def summary(self, action_BTD: Tensor) -> Tensor:
        """All of a chunk's tokens as one vector (B, 1, D), for the modulation of the future that it leads to."""
        return self.summary_out(self.action_summary(action_BTD).mean(1, keepdim=True))

    def _place(self, kind: str, camera: str, x_BOND: Tensor, rows: int, columns: int, time_s_BO: Tensor) -> Tensor:
        positions = grid_positions if torch.compiler.is_compiling() else kept_grid_positions
        where = positions(rows, columns, self.width, x_BOND.device).to(x_BOND.dtype)
        row = self.camera_row.get(camera, UNKNOWN_CAMERA)
        when = self.when(time_s_BO)[:, :, None]
        return (x_BOND + where + when + self.camera.weight[row] + self.kind[kind]).flatten(1, 2)

    # ----------------------------------------------------------------------------------------------- out

    def read(self, group: str, x_BND: Tensor, cond_BND: Tensor, shape: Sequence[int]) -> Tensor:
        """Tokens of one group (one camera) as the field's shape, with `out_factor` times the channels.

        Args:  shape: (B, T, A) for actions -> (B, T, A * f);  (B, F, C, h, w) -> (B, F, C * f, h, w);
               (B, F, S, S) -> (B, F, f, S, S), or (B, F, S, S) if f is 1.
        """
        x = self.heads[group](x_BND, cond_BND)
        if group == "action":
            return x
        if group == "future_rgb":
            p, (frames, _, height, width) = self.patch, shape[1:]
            return rearrange(
                x, "b (f y x) (c p q) -> b f c (y p) (x q)", f=frames, y=height // p, x=width // p, p=p, q=p
            )
        p, (frames, height, width) = self.depth_patch, shape[1:]
        x = rearrange(x, "b (f y x) (c p q) -> b f c (y p) (x q)", f=frames, y=height // p, x=width // p, p=p, q=p)
        return x.squeeze(2) if self.out_factor == 1 else x
