"""The whole network: fields and noise times in, one prediction per noised field out. `forward` shows the plan.

Fields carry the names of `padpolicy/batch.py`: `future.latent_<cam>`, `future.depth_<cam>`, `action`.
Letters: B batch, C context tokens, N noised tokens, R modulation rows, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from padpolicy.batch import present
from padpolicy.model.dit import ContextCache, DiT, per_token
from padpolicy.model.layers import ScalarEmbedding
from padpolicy.model.masks import NOISED, Mode, mode_table, who_sees_whom
from padpolicy.model.tokens import Tokens


def group_of(field: str) -> str:
    """The token group a noised field belongs to."""
    if field == "action":
        return "action"
    return "future_rgb" if field.startswith("future.latent_") else "future_depth"


def camera_of(field: str) -> str:
    """`future.latent_front` -> `front`."""
    return field.split("_", 1)[1]


@dataclass
class Observed:
    """What the context is made of, ready for tokens. Absent contents are already zero; `has` says which those are."""

    latents: dict[str, Tensor]  # camera -> (B, O, C, h, w)
    pixels: dict[str, Tensor]  # camera -> (B, O, H, W, 3) in [-1, 1], or with standardised depth and its validity 5;
    #                            instead of latents when the eye is a stem
    depth: dict[str, tuple[Tensor, Tensor]]  # camera -> standardised (B, O, S, S), valid (B, O, S, S)
    proprio: Tensor | None  # (B, O, P) normalised
    has: dict[str, Tensor]  # "rgb_<cam>", "depth_<cam>", "proprio", "text" -> (B,)
    time_s: Tensor  # (B, O)
    presents: dict[str, Tensor]  # future field -> (B, 1, ...), the newest observation behind it
    text_tokens: Tensor | None = None  # (B, L, W)
    text_mask: Tensor | None = None  # (B, L)
    text_pooled: Tensor | None = None  # (B, W')


@dataclass
class Context:
    """The observation and the instruction, as every denoising step needs them."""

    cache: ContextCache
    pooled_B1D: Tensor  # added to every modulation: the sentence (0 where it goes in as tokens) and where it points
    presents: dict[str, Tensor]  # future field -> (B, N, D), added to the N tokens of each of its frames


_Parts = list[tuple[Tensor, Tensor]]  # tokens (B, N, D), and (B,) or (B, N): are they there?


class Denoiser(nn.Module):
    """What every family of networks offers: `context` once per observation, `denoise` once per step.

    modes: what it can be asked for; see masks.py.
    """

    modes: Mapping[str, Mode]

    def forward(
        self,
        mode: str,
        observed: Observed,
        x: Mapping[str, Tensor],
        tau: Mapping[str, Tensor],
        time_s: Mapping[str, Tensor],
        has: Mapping[str, Tensor] | None = None,
        clean_BT: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One training pass: the context, then one denoising step. See `context` and `denoise`."""
        return self.denoise(mode, self.context(observed), x, tau, time_s, has, clean_BT)

    def when(self, time_s: Tensor) -> Tensor:
        """Seconds (B, O), in whatever form `denoise` can use again at every step."""
        return time_s

    def context(self, observed: Observed) -> Any:
        """Encodes what is known. Nothing here depends on the noise, so it is done once per (observation, prompt)."""
        raise NotImplementedError

    def denoise(
        self,
        mode: str,
        context: Any,
        x: Mapping[str, Tensor],
        tau: Mapping[str, Tensor],
        time_s: Mapping[str, Tensor],
        has: Mapping[str, Tensor] | None = None,
        clean_BT: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predicts, for each denoised field of the mode, what the objective trains (velocity, noise or what is clean).

        Fields may have n rows for each row of the context, one after the other: n noise draws of one observation.

        Args:  x: noised fields, and given ones clean.
               tau: group -> (B n,) noise time in [0, 1], a number per row of x; given groups are 0.
               time_s: "future" -> (B, F), "action" -> (B, T), seconds from now, or what `when` makes of them.
               has: field -> (B,) bool; None: everything in x is there.
               clean_BT: action steps that are a known, clean prefix; None: there are none.
        """
        raise NotImplementedError


class Network(Denoiser):
    """Ours.

    Args:  tokens, trunk: the parts.   coupling: of `joint`, see masks.py.   text: "tokens", "pooled" or "both".
    """

    def __init__(self, tokens: Tokens, trunk: DiT, coupling: str, text: str):
        super().__init__()
        self.tokens, self.trunk, self.text = tokens, trunk, text
        self.modes = mode_table(coupling)
        self.tau = ScalarEmbedding(tokens.width, scale=1000.0)  # a DDPM step k of 1000 and tau = k / 1000 look alike
        self.rows = nn.ParameterDict(  # per group: row 0 modulates clean tokens, row 1 noised ones
            {group: nn.Parameter(0.02 * torch.randn(2, tokens.width)) for group in NOISED}
        )
        self.context_row = nn.Parameter(0.02 * torch.randn(tokens.width))
        for layer in (self.tau.mlp[0], self.tau.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)  # as DiT's time embedding

    def when(self, time_s: Tensor) -> Tensor:
        """Seconds (B, O) as vectors (B, O, D)."""
        return self.tokens.when(time_s)

    def context(self, observed: Observed) -> Context:
        heard, seen, felt = self._read(observed)
        x_BCD, mask_BC = _join(heard + seen + felt)
        pooled = self._sentence(observed)
        cache = self.trunk.context(x_BCD, F.silu(self.context_row + pooled), mask_BC)
        if self.tokens.glance is not None:
            pooled = pooled + self.tokens.glance.out(self._look(seen, felt, pooled))
        presents = {field: self.tokens.present(group_of(field), x) for field, x in observed.presents.items()}
        return Context(cache, pooled, presents)

    def look(self, observed: Observed) -> Tensor:
        """What a glance finds, (B, 2 D): the first thing `context` does, and all that scripts/train_eye.py trains."""
        _, seen, felt = self._read(observed)
        return self._look(seen, felt, self._sentence(observed))[:, 0]

    def _look(self, seen: _Parts, felt: _Parts, pooled_B1D: Tensor) -> Tensor:
        asked = pooled_B1D
        for tokens, there in felt:
            asked = asked + tokens[:, -1:] * there[:, None, None]
        if not seen:
            nothing = asked.new_zeros(len(asked), 1, asked.shape[-1])
            return self.tokens.glance(nothing, torch.zeros_like(nothing[..., 0], dtype=torch.bool), asked)
        return self.tokens.glance(*_join(seen), asked)

    def _sentence(self, observed: Observed) -> Tensor:
        pooled = self.tokens.pooled(observed.text_pooled, observed.has["text"])
        return 0 * pooled if self.text == "tokens" else pooled

    def _read(self, observed: Observed) -> tuple[_Parts, _Parts, _Parts]:
        """Tokens of what is heard, seen and felt, and which of them are there."""
        make, has, when = self.tokens, observed.has, self.tokens.when(observed.time_s)
        heard, seen, felt = [], [], []
        if self.text != "pooled":
            heard.append(make.text(observed.text_tokens, observed.text_mask, has["text"]))
        for camera, x in observed.latents.items():
            seen.append((make.latents("obs_rgb", camera, x, when), has[f"rgb_{camera}"]))
        for camera, x in observed.pixels.items():
            seen.append((make.pixels(camera, x, when), has[f"rgb_{camera}"]))
        for camera, (x, valid) in observed.depth.items():
            seen.append((make.depth("obs_depth", camera, x, valid, when), has[f"depth_{camera}"]))
        if observed.proprio is not None:
            felt.append((make.proprio(observed.proprio, when), has["proprio"]))
        return heard, seen, felt

    def denoise(
        self,
        mode: str,
        context: Context,
        x: Mapping[str, Tensor],
        tau: Mapping[str, Tensor],
        time_s: Mapping[str, Tensor],
        has: Mapping[str, Tensor] | None = None,
        clean_BT: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `Denoiser.denoise`. Noise draws of one observation stand side by side in one sequence, where no draw sees
        another, so the context is neither repeated nor copied.
        """
        make, table = self.tokens, self.modes[mode]
        fields = [f for group in NOISED if group in table.groups for f in x if group_of(f) == group]
        n = len(x[fields[0]]) // len(context.pooled_B1D)  # draws
        pooled = context.pooled_B1D if n == 1 else context.pooled_B1D.repeat_interleave(n, 0)
        action_BTD = make.action(x["action"], time_s["action"]) if "action" in fields else None
        tokens, rows, choice = [], [], []  # per field: tokens; modulation rows; which row each token takes
        row_of: dict[tuple[str, bool], int] = {}
        for field in fields:
            group = group_of(field)
            if field == "action":
                tokens.append(action_BTD)
            elif group == "future_rgb":
                tokens.append(make.latents(group, camera_of(field), x[field], time_s["future"]))
            else:
                valid = torch.ones_like(x[field])  # what was invalid has been filled: see PadPolicy
                tokens.append(make.depth(group, camera_of(field), x[field], valid, time_s["future"]))
            if field == "action" and clean_BT is not None and group not in table.given:
                tokens[-1] = tokens[-1] + make.after(x[field], clean_BT)  # attention is slow to learn sums
            if field in context.presents:  # where a frame changes, and from what, is seen at the same place
                present_BND, frames = context.presents[field], x[field].shape[1]
                tokens[-1] = tokens[-1] + present_BND.repeat_interleave(n, 0).repeat(1, frames, 1)
            led_to: Tensor | float = 0.0  # what the actions do, said to every token of a future that sees them
            if action_BTD is not None and group != "action" and "action" in table.sees[group]:
                led_to = make.summary(action_BTD + self.tau(tau["action"])[:, None])
                led_to = led_to if has is None else present(led_to, has["action"])
            given = group in table.given
            has_prefix = field == "action" and clean_BT is not None and not given
            for clean in (True, False) if has_prefix else (given,):
                if (group, clean) not in row_of:
                    row_of[group, clean] = len(rows)
                    when = torch.zeros_like(tau[group]) if clean else tau[group]
                    rows.append(self.tau(when)[:, None] + self.rows[group][0 if clean else 1] + pooled + led_to)
            if has_prefix:
                choice.append(torch.where(clean_BT, row_of[group, True], row_of[group, False]))
            else:
                index = torch.full((1, tokens[-1].shape[1]), row_of[group, given], device=pooled.device)
                choice.append(index if clean_BT is None else index.expand(len(tokens[-1]), -1))

        cond_BRD = F.silu(torch.cat(rows, 1)).unflatten(0, (-1, n)).flatten(1, 2)
        select = None
        if len(rows) * n > 1:
            select = _blocks(F.one_hot(torch.cat(choice, 1), len(rows)), n).to(cond_BRD.dtype)
        x_BND = torch.cat(tokens, 1).unflatten(0, (-1, n)).flatten(1, 2)
        see = self._see(mode, context, fields, tokens, has, n)
        y_BND = self.trunk.denoise(x_BND, cond_BRD, select, context.cache, see)

        y_BND = y_BND.unflatten(1, (n, -1)).flatten(0, 1)
        cond_BND = per_token(cond_BRD, select)
        cond_BND = cond_BND if select is None else cond_BND.unflatten(1, (n, -1)).flatten(0, 1)
        out, start = {}, 0
        for field, field_tokens in zip(fields, tokens, strict=True):
            span = slice(start, start + field_tokens.shape[1])
            start = span.stop
            if group_of(field) in table.denoised:
                cond = cond_BND if cond_BND.shape[1] == 1 else cond_BND[:, span]
                out[field] = make.read(group_of(field), y_BND[:, span], cond, x[field].shape)
        return out

    def _see(
        self,
        mode: str,
        context: Context,
        fields: Sequence[str],
        tokens: Sequence[Tensor],
        has: Mapping[str, Tensor] | None,
        draws: int,
    ) -> Tensor | None:
        """Who sees whom, behind who is there at all: (B or 1, 1, N, C + N), or None when nothing is hidden."""
        sizes: dict[str, int] = {}
        for field, x_BND in zip(fields, tokens, strict=True):
            sizes[group_of(field)] = sizes.get(group_of(field), 0) + x_BND.shape[1]
        n, device, batch = sum(sizes.values()), tokens[0].device, len(context.pooled_B1D)
        among, context_mask = who_sees_whom(self.modes[mode], sizes, device), context.cache.mask
        if among is None and has is None and context_mask is None and draws == 1:
            return None
        if among is None:
            among = torch.ones(n, n, dtype=torch.bool, device=device)
        see = among[None]
        if has is not None:
            there = torch.cat([_per_token(has[f], t) for f, t in zip(fields, tokens, strict=True)], 1)
            # A token always sees itself: an absent one is read by nobody, but a row without keys would be NaN.
            see = see & (there[:, None] | torch.eye(n, dtype=torch.bool, device=device))
        see = _blocks(see, draws).expand(batch, -1, -1)
        if context_mask is None:
            context_mask = torch.ones(batch, context.cache.keys[0].shape[2], dtype=torch.bool, device=device)
        return torch.cat([context_mask[:, None].expand(-1, n * draws, -1), see], 2)[:, None]


def _blocks(x: Tensor, n: int) -> Tensor:
    """n matrices on the diagonal of one: (B * n, N, M) -> (B, n * N, n * M); a single one (1, N, M) stands in all."""
    if n == 1:
        return x
    blocks = (x.expand(n, -1, -1) if len(x) == 1 else x).unflatten(0, (-1, n))
    eye = torch.eye(n, dtype=x.dtype, device=x.device)
    return (blocks[:, :, :, None] * eye[:, None, :, None]).flatten(3, 4).flatten(1, 2)


def _join(parts: _Parts) -> tuple[Tensor, Tensor]:
    """One sequence (B, N, D), and which of its tokens are there (B, N)."""
    return torch.cat([x for x, _ in parts], 1), torch.cat([_per_token(there, x) for x, there in parts], 1)


def _per_token(there: Tensor, tokens_BND: Tensor) -> Tensor:
    """(B,) or (B, N) bool -> (B, N)."""
    return there if there.ndim == 2 else there[:, None].expand(-1, tokens_BND.shape[1])
