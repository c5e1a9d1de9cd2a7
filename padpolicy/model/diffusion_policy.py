"""Diffusion Policy (arXiv:2303.04137) behind our `Denoiser`: its 1-D U-Net with FiLM, and its transformer.

Both are told the features of every observation step (resnet_eyes.py, and proprioception as it is), the noise step, and,
as the one addition, the sentence: published tasks are told apart by their data, ours by words. What is absent is 0; a
missing sentence is a learned vector. Both say what the objective trains, of actions alone.

Letters: B observations, N = B * draws noised chunks, O observation steps, T action steps, A action dims, D width,
E numbers of the condition, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from padpolicy.batch import present
from padpolicy.model.layers import sincos
from padpolicy.model.masks import mode_table
from padpolicy.model.network import Denoiser, Observed
from padpolicy.model.resnet_eyes import FEATURES, ResnetEye

STEP = 128  # numbers that tell the U-Net the noise step
GROUPS = 8  # of channels, normalised together


class Condition(nn.Module):
    """What is seen and felt, and what is said.

    Args:  cameras: a ResNet each.   proprio_dim: P; 0: there is none.   pooled_width: of the text encoder's sentences.
           said: numbers that a sentence becomes.   stages: of each ResNet, see ResnetEye.
    """

    def __init__(self, cameras: Sequence[str], proprio_dim: int, pooled_width: int, said: int, stages: int = 4):
        super().__init__()
        self.eyes = nn.ModuleDict({camera: ResnetEye(stages) for camera in cameras})
        self.proprio_dim = proprio_dim
        self.features = FEATURES * len(cameras) + proprio_dim  # per observation step
        self.text_in = nn.Linear(pooled_width, said)
        self.null_text = nn.Parameter(torch.zeros(said))

    def forward(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """Features per step (B, O, features), and the sentence (B, said)."""
        steps = observed.time_s.shape
        parts = []
        for camera, eye in self.eyes.items():
            if camera not in observed.pixels:
                parts.append(self.null_text.new_zeros(*steps, FEATURES))
                continue
            x = rearrange(observed.pixels[camera], "b o y x c -> (b o) c y x")
            parts.append(present(eye(x).float().unflatten(0, steps), observed.has[f"rgb_{camera}"]))
        felt = observed.proprio
        parts.append(self.null_text.new_zeros(*steps, self.proprio_dim) if felt is None else felt)
        said = torch.where(observed.has["text"][:, None], self.text_in(observed.text_pooled), self.null_text)
        return torch.cat(parts, -1), said


class _Actions(Denoiser):
    """What the two share: actions are all they denoise, in mode `policy`.

    Args:  condition: what they are told.   steps: noise time 1 is step `steps` - 1, counted from 0 as published.
    """

    def __init__(self, condition: Condition, steps: int):
        super().__init__()
        self.condition, self.steps = condition, steps
        self.modes = {"policy": mode_table("blind")["policy"]}

    def denoise(
        self,
        mode: str,
        context: Tensor,
        x: Mapping[str, Tensor],
        tau: Mapping[str, Tensor],
        time_s: Mapping[str, Tensor],
        has: Mapping[str, Tensor] | None = None,
        clean_BT: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `Denoiser.denoise`. A known prefix is simply clean in x, which is all that published networks see of it;
        absent actions have no loss, and nobody else sees them.
        """
        told = context.repeat_interleave(len(x["action"]) // len(context), 0)
        return {"action": self.actions(told, x["action"], tau["action"] * self.steps - 1)}

    def actions(self, told: Tensor, x_NTA: Tensor, step_N: Tensor) -> Tensor:
        """The answer (N, T, A * out_factor) for noised chunks at their noise steps, under a context row each."""
        raise NotImplementedError


def _conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(before, after, 5, padding=2), nn.GroupNorm(GROUPS, after), nn.Mish())


class FilmBlock(nn.Module):
    """Two convolutions over time and a skip; between them the condition scales and shifts every channel.

    Source:  FiLM, arXiv:1709.07871.
    """

    def __init__(self, before: int, after: int, condition: int):
        super().__init__()
        self.first, self.second = _conv(before, after), _conv(after, after)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * after))
        self.skip = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x_NCT: Tensor, told_NE: Tensor) -> Tensor:
        scale, shift = self.film(told_NE)[..., None].chunk(2, 1)
        return self.second(scale * self.first(x_NCT) + shift) + self.skip(x_NCT)


def _through(blocks: nn.ModuleList, x_NCT: Tensor, told_NE: Tensor) -> Tensor:
    for block in blocks:
        x_NCT = block(x_NCT, told_NE)
    return x_NCT


class UnetNetwork(_Actions):
    """Convolutions over the chunk, at T, T / 2 and T / 4 steps with D, 2 D and 4 D channels, and back up again.

    Args:  condition, steps: see _Actions.   obs_steps: O.   action_dim: A.   width: D, a multiple of 8.
           out_factor: numbers predicted per element.
    """

    def __init__(self, condition: Condition, steps: int, obs_steps: int, action_dim: int, width: int, out_factor: int):
        super().__init__(condition, steps)
        told = STEP + obs_steps * condition.features + len(condition.null_text)
        sides = [action_dim, width, 2 * width, 4 * width]
        self.step = nn.Sequential(nn.Linear(STEP, 4 * STEP), nn.Mish(), nn.Linear(4 * STEP, STEP))
        self.down = nn.ModuleList(
            nn.ModuleList([FilmBlock(before, after, told), FilmBlock(after, after, told)])
            for before, after in zip(sides[:-1], sides[1:], strict=True)
        )
        self.shorten = nn.ModuleList([nn.Conv1d(side, side, 3, stride=2, padding=1) for side in sides[1:3]])
        self.middle = nn.ModuleList([FilmBlock(sides[3], sides[3], told) for _ in range(2)])
        self.up = nn.ModuleList(
            nn.ModuleList([FilmBlock(2 * before, after, told), FilmBlock(after, after, told)])
            for before, after in ((sides[3], sides[2]), (sides[2], sides[1]))
        )
        self.lengthen = nn.ModuleList(
            [nn.ConvTranspose1d(side, side, 4, stride=2, padding=1) for side in sides[2:0:-1]]
        )
        self.out = nn.Sequential(_conv(width, width), nn.Conv1d(width, action_dim * out_factor, 1))

    def context(self, observed: Observed) -> Tensor:
        """All that is told at once, (B, E)."""
        seen_BOE, said = self.condition(observed)
        return torch.cat([seen_BOE.flatten(1), said], 1)

    def actions(self, told: Tensor, x_NTA: Tensor, step_N: Tensor) -> Tensor:
        told = torch.cat([self.step(sincos(step_N, STEP).to(told.dtype)), told], 1)
        x = F.pad(x_NTA.transpose(1, 2), (0, -x_NTA.shape[1] % 4))  # halves twice
        passed = []
        for blocks, shorten in zip(self.down, [*self.shorten, nn.Identity()], strict=True):
            passed.append(_through(blocks, x, told))
            x = shorten(passed[-1])
        x = _through(self.middle, x, told)
        for blocks, lengthen in zip(self.up, self.lengthen, strict=True):
            x = lengthen(_through(blocks, torch.cat([x, passed.pop()], 1), told))
        return self.out(x).transpose(1, 2)[:, : x_NTA.shape[1]]


class TransformerNetwork(_Actions):
    """A decoder over the chunk: each action sees those before it, and as memory the step, the observations, the words.

    Args:  condition, steps: see _Actions; a sentence has D numbers.   obs_steps: O.   chunk_steps: T at most.
           action_dim: A.   width: D.   depth: layers.   heads, mlp_ratio: of each.   out_factor: as of UnetNetwork.
    """

    def __init__(
        self,
        condition: Condition,
        steps: int,
        obs_steps: int,
        chunk_steps: int,
        action_dim: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        out_factor: int,
    ):
        super().__init__(condition, steps)
        self.seen_in, self.action_in = nn.Linear(condition.features, width), nn.Linear(action_dim, width)
        self.place = nn.Parameter(torch.empty(chunk_steps, width))
        self.memory_place = nn.Parameter(torch.empty(2 + obs_steps, width))  # step, words, observations
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        layer = nn.TransformerDecoderLayer(
            width, heads, int(mlp_ratio * width), dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, depth, norm=nn.LayerNorm(width))
        self.out = nn.Linear(width, action_dim * out_factor)
        self.init_weights()

    def init_weights(self) -> None:
        """Everything but the eyes is normal with a standard deviation of 0.02, as GPT's."""
        for name, parameter in self.named_parameters():
            if name.startswith("condition.") or "norm" in name:
                continue
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=0.02)

    def context(self, observed: Observed) -> Tensor:
        """Memory tokens of the words and of each observation step, (B, 1 + O, D)."""
        seen_BOE, said_BD = self.condition(observed)
        tokens = torch.cat([said_BD[:, None], self.seen_in(seen_BOE)], 1)
        return self.think(tokens + self.memory_place[1:])

    def actions(self, told: Tensor, x_NTA: Tensor, step_N: Tensor) -> Tensor:
        step = self.think(sincos(step_N, self.place.shape[1]).to(told.dtype)[:, None] + self.memory_place[:1])
        x = self.action_in(x_NTA) + self.place[: x_NTA.shape[1]]
        later = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        x = self.decoder(x, torch.cat([step, told], 1), tgt_mask=later, tgt_is_causal=True)
        return self.out(x)
