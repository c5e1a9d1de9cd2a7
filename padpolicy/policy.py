"""The small interface everything else sees, and PadPolicy behind it (encoders + normaliser + network + diffusion).

    obs_steps            chunk_steps
    |o o O|              |a a a a a a a a a a a a a a a a|
          ^ now           \\_ exec_steps _/ then plan again
                                            F F   future frames at future_offsets_s

Letters: B batch, O observation steps, F future frames, T action steps, A action dims, C h w latents, S reduced depth.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from padpolicy import draws
from padpolicy.batch import Batch, present
from padpolicy.data.actions import ActionSpec
from padpolicy.data.normalizer import Normalizer
from padpolicy.diffusion.guidance import Guidance
from padpolicy.diffusion.objective import Objective
from padpolicy.diffusion.path import draw_tau, like, tau_weight
from padpolicy.diffusion.sampler import sample
from padpolicy.encoders.depth import DepthScale
from padpolicy.fields import Fields
from padpolicy.model.families import build_network
from padpolicy.model.masks import NOISED, Mode
from padpolicy.model.network import camera_of, group_of
from padpolicy.spec import PolicyConfig, PolicySpec

if TYPE_CHECKING:  # only their interface is used here, and diffusers takes seconds to import
    from padpolicy.encoders.image import ImageEncoder
    from padpolicy.encoders.text import TextEncoder

STAGED = "video_inverse"  # two modes one after the other: what is going to happen, then the actions that lead there
MODALITY = {"action": "action", "future_rgb": "rgb", "future_depth": "depth"}


@dataclass
class LossTerms:
    """Per modality ("action", "rgb", "depth"): each sample's mean over its valid elements, and which have any."""

    value: dict[str, Tensor]  # name -> (B,) float32, 0 where not valid
    valid: dict[str, Tensor]  # name -> (B,) bool
    weight: dict[str, float]

    def total(self, counts: Mapping[str, Tensor | float] | None = None) -> Tensor:
        """The weighted loss: per modality, the sum over valid samples by their count; nothing valid gives exactly 0.

        Args:  counts: valid samples of the whole global batch, when this batch is only a part of it.
        """
        total = torch.zeros((), device=next(iter(self.value.values())).device)
        for name, value in self.value.items():
            count = self.valid[name].sum() if counts is None else counts[name]
            total = total + self.weight[name] * value.sum() / max(float(count), 1.0)
        return total


@dataclass
class Prediction:
    """What `predict` returns. Absent parts are None or empty."""

    action: Tensor | None  # (B, T, A) real environment actions, float32
    future_latent: dict[str, Tensor] = field(default_factory=dict)  # camera -> (B, F, C, h, w) unit-variance latents
    future_depth: dict[str, Tensor] = field(default_factory=dict)  # camera -> (B, F, S, S) float32 millimetres
    timings_ms: dict[str, float] = field(default_factory=dict)  # encode, context, denoise, total


class Policy(Protocol):
    """Stateless: the same call gives the same answer. State (history, chunks) lives in control/chunking.py."""

    spec: PolicySpec

    @property
    def acts_in(self) -> str:
        """The mode that a closed loop plans in."""

    @property
    def imagines_in(self) -> str:
        """The mode in which a plan comes with the future that it expects; "" if it never learned to."""

    def learned(self, mode: str) -> bool:
        """Whether demonstrations taught it this mode; in another it would answer, but not well."""

    def noise_shapes(self, mode: str) -> dict[str, tuple[int, ...]]:
        """Per noised field of the mode, its shape without the batch: what `predict` may be given as `noise`."""

    def valid_counts(self, batch: Batch) -> dict[str, int]:
        """Per modality, how many samples of the batch will have a loss. Cheap: runs no network."""

    def loss(self, batch: Batch) -> LossTerms:
        """Random draws (mode, time, noise) are functions of (batch.seed, batch.step, batch.index)."""

    def predict(
        self,
        obs: Batch,
        *,
        mode: str = "policy",
        actions: Tensor | None = None,
        future: dict[str, Tensor] | None = None,
        prefix: Tensor | None = None,
        prefix_len: Tensor | None = None,
        guidance: Guidance | float | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        noise: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Prediction:
        """Denoises what the mode asks for; see PadPolicy.predict."""

    def encode(self, frames: Tensor) -> Tensor:
        """Pictures (..., H, W, 3) uint8 as latents (..., C, h, w)."""

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (..., C, h, w) as pictures (..., H, W, 3) uint8."""


class PadPolicy(nn.Module):
    """Encoders, a normaliser, a network of some family (model/families.py) and its diffusion.

    Only the network is trained and saved as weights. The frozen encoders are referred to by name and fingerprint.

    Args:  config: settings.   normalizer: statistics of actions and proprioception.   depth: scale of depth.
           image_encoder, text_encoder: frozen; None only where no image or no text will ever come.
    """

    def __init__(
        self,
        config: PolicyConfig,
        normalizer: Normalizer,
        depth: DepthScale,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
    ):
        super().__init__()
        self.config, self.spec = config, config.spec
        self.normalizer, self.depth_scale = normalizer, depth
        self.image_encoder, self.text_encoder = image_encoder, text_encoder  # no nn.Modules: not in state_dict
        self.fields = Fields(config, normalizer, depth, image_encoder, text_encoder)
        diffusion, spec = config.diffusion, config.spec
        action = ActionSpec.from_dict(spec.action) if spec.action else None
        self._roles = (
            ["yaw" if r == "rotation" and action.rotation == "yaw" else r for r in action.roles] if action else []
        )
        says = {name: diffusion.predict_future for name in _noised_fields(spec)} | {"action": diffusion.predict_action}
        self.objective = Objective(
            diffusion.objective,
            says,
            diffusion.learn_variance,
            diffusion.train_steps,
            diffusion.schedule,
            diffusion.schedule_shift,
            diffusion.loss,
        )
        widths = text_encoder.width, text_encoder.pooled_width
        factor, downsample = self.objective.out_factor, image_encoder.downsample
        self.network = build_network(config, image_encoder.channels, *widths, factor, downsample)
        self.compiled = False

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def acts_in(self) -> str:
        """Without the future, as long as that was trained: it is faster. "joint" where actions only knew the future,
        "video_inverse" where they only knew how to get from one frame to another.
        """
        if self.learned("policy") or not (self.learned("joint") or self.learned("inverse")):
            return "policy" if "policy" in self.network.modes else "joint"
        return "joint" if self.learned("joint") else STAGED

    @property
    def imagines_in(self) -> str:
        """As it acts, where that imagines, and else "joint"; "" if it never learned to imagine."""
        if not self.spec.future_cameras:
            return ""
        return "joint" if self.learned("joint") else STAGED if self.acts_in == STAGED else ""

    def learned(self, mode: str) -> bool:
        """Whether demonstrations taught it this mode: whether its share in `diffusion.modes` is more than 0."""
        return self.config.diffusion.modes.get(mode, 0) > 0

    def noise_shapes(self, mode: str) -> dict[str, tuple[int, ...]]:
        """Per noised field of the mode, its shape without the batch."""
        groups = NOISED if mode == STAGED else self.network.modes[mode].groups
        spec, side = self.spec, self.config.model.depth_size
        frames, latent = len(spec.future_offsets_s), spec.image_size // self.image_encoder.downsample
        shapes: dict[str, tuple[int, ...]] = {}
        if "future_rgb" in groups:
            for camera in spec.future_cameras:
                shapes[f"future.latent_{camera}"] = (frames, self.image_encoder.channels, latent, latent)
        if "future_depth" in groups:
            for camera in spec.future_depth_cameras:
                shapes[f"future.depth_{camera}"] = (frames, side, side)
        if "action" in groups:
            shapes["action"] = (spec.chunk_steps, spec.action_dim)
        return shapes

    # ------------------------------------------------------------------------------------------ training

    def draw_modes(self, batch: Batch) -> list[str | None]:
        """The mode of each sample, drawn by `modes` (it has actions) or `video_modes` among those it has fields for."""
        u = draws.uniform(batch.seed, batch.step, batch.index.cpu(), "mode").tolist()
        action = batch.has_field("action").tolist()
        future = self.fields.has_future(batch).tolist()
        modes: list[str | None] = []
        for i in range(len(batch)):
            weights = self.config.diffusion.modes if action[i] else self.config.diffusion.video_modes
            can = {
                mode: weight
                for mode, weight in weights.items()
                if weight > 0 and (mode == "policy" or future[i]) and (mode == "video" or action[i])
            }
            modes.append(_pick(can, u[i]))
        return modes

    def valid_counts(self, batch: Batch) -> dict[str, int]:
        """Per modality, how many samples of the batch will have a loss. Runs no network."""
        return {name: int(valid.sum()) for name, valid in self._valid(batch, self.draw_modes(batch)).items()}

    def loss(self, batch: Batch) -> LossTerms:
        """The loss of each sample, under draws that are functions of (batch.seed, batch.step, batch.index).

        Samples of one mode run together, with just the groups of their mode in the sequence. A sample's loss does not
        depend on what else is in the batch.
        """
        modes = self.draw_modes(batch)
        valid = {name: there.to(self.device) for name, there in self._valid(batch, modes).items()}
        value = {name: torch.zeros(len(batch), device=self.device) for name in valid}
        for mode in sorted({mode for mode in modes if mode}):
            rows = torch.tensor([i for i, m in enumerate(modes) if m == mode])
            part = self._loss_in_mode(mode, batch.select(rows).to(self.device))
            rows = rows.to(self.device)
            for name, part_value in part.items():
                value[name] = value[name].index_copy(0, rows, part_value)
        weight = self.config.diffusion
        return LossTerms(
            value={name: torch.where(valid[name], v, 0.0) for name, v in value.items()},
            valid=valid,
            weight={"action": weight.weight_action, "rgb": weight.weight_rgb, "depth": weight.weight_depth},
        )

    def _loss_in_mode(self, mode: str, batch: Batch) -> dict[str, Tensor]:
        """The mean error of each sample over its valid elements and its noise draws, per modality (B,)."""
        table = self.network.modes[mode]
        batch = _in_mode(table, self._drop(batch))
        presents = self.fields.presents(batch, table.groups)
        x0, valid = self.fields.targets(batch, table.groups, presents)
        context = self.network.context(self.fields.observed(batch, presents))
        has = {name: self.fields.has(batch, name) for name in x0}
        prefix_BT = self._prefix(batch) if mode in ("policy", "joint") else None
        if prefix_BT is not None:
            valid["action"] = valid["action"] & ~prefix_BT[..., None]
            # What ran, not what should have run: the rest of the chunk must make up for the difference.
            ran = self.fields.actions(_as_executed(batch))
            ran, x0["action"] = self._strayed(batch, ran, x0["action"], prefix_BT)

        n = self.config.diffusion.action_draws if table.groups == ("action",) else 1
        drawn, density = self._draw_tau(mode, batch, n), self.config.diffusion.tau_density
        tau = {group: self.objective.time(t) for group, t in drawn.items()}
        noise = {name: self._draw_noise(name, batch, n, x.shape[1:]) for name, x in x0.items()}
        x0, valid, has, time_s = (_rows(tensors, n) for tensors in (x0, valid, has, batch.time_s))
        x = {
            name: clean
            if group_of(name) in table.given
            else self.objective.mix(clean, noise[name], tau[group_of(name)])
            for name, clean in x0.items()
        }
        if prefix_BT is not None:
            prefix_BT, ran = _rows(prefix_BT, n), _rows(ran, n)
            x["action"] = torch.where(prefix_BT[..., None], ran, x["action"])
        out = self.network.denoise(mode, context, x, tau, time_s, has, prefix_BT)

        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for name, answer in out.items():
            axis = _channel_axis(name, self.objective.out_factor)
            error = self.objective.error(name, answer.float(), x0[name], noise[name], tau[group_of(name)], axis)
            if density:
                error = error * like(tau_weight(drawn[group_of(name)], density), error)
            there = valid[name].expand_as(error)
            key = MODALITY[group_of(name)]
            sums[key] = sums.get(key, 0) + present(error, there).reshape(len(batch), -1).sum(1)
            counts[key] = counts.get(key, 0) + there.reshape(len(batch), -1).sum(1)
        return {key: sums[key] / counts[key].clamp(min=1) for key in sums}

    def _valid(self, batch: Batch, modes: list[str | None]) -> dict[str, Tensor]:
        """Per modality, (B,) bool on the CPU: which samples have at least one element with a loss."""
        table = self.network.modes

        def denoises(group: str) -> Tensor:
            return torch.tensor([mode is not None and group in table[mode].denoised for mode in modes])

        valid = {
            "action": denoises("action") & batch.has_field("action").cpu(),
            "rgb": denoises("future_rgb"),
            "depth": denoises("future_depth"),
        }
        if "action" in batch.is_pad:
            valid["action"] &= (~batch.is_pad["action"]).any(1).cpu()
        rgb, depth = torch.zeros(len(batch), dtype=torch.bool), torch.zeros(len(batch), dtype=torch.bool)
        if "future" in batch.is_pad:
            seen_BF = ~batch.is_pad["future"]
            for camera in self.spec.future_cameras:
                rgb |= (self.fields.has_frames(batch, "future", camera)[:, None] & seen_BF).any(1).cpu()
            for camera in self.spec.future_depth_cameras:
                name = f"future.depth_{camera}"
                if name in batch.fields:
                    any_BF = (batch.fields[name].view(torch.int16) != 0).flatten(2).any(2)
                    depth |= (batch.has[name][:, None] & seen_BF & any_BF).any(1).cpu()
        valid["rgb"] &= rgb
        valid["depth"] &= depth
        return valid

    def _drop(self, batch: Batch) -> Batch:
        """Text dropout, and dropout of one observation field, as draws of the sample."""
        cfg, has = self.config.diffusion, dict(batch.has)
        if cfg.text_dropout > 0:
            keep = draws.uniform(batch.seed, batch.step, batch.index, "text") >= cfg.text_dropout
            has["text"] = has["text"] & keep
        if cfg.obs_dropout > 0:
            groups = [[f"obs.latent_{c}", f"obs.rgb_{c}"] for c in self.spec.cameras]
            groups += [[f"obs.depth_{c}"] for c in self.spec.depth_cameras] + [["obs.proprio"]]
            there_GB = torch.stack([torch.stack([batch.has_field(name) for name in names]).any(0) for names in groups])
            u_B = draws.uniform(batch.seed, batch.step, batch.index, "obs") / cfg.obs_dropout
            which_B = (u_B * there_GB.sum(0)).long()  # counted among those that the sample has; u >= 1 hits none
            hit_GB = there_GB & (there_GB.cumsum(0) - 1 == which_B) & (there_GB.sum(0) > 1)
            for names, hit_B in zip(groups, hit_GB, strict=True):
                has |= {name: has[name] & ~hit_B for name in names if name in has}
        return dataclasses.replace(batch, has=has)

    def _draw_tau(self, mode: str, batch: Batch, n: int) -> dict[str, Tensor]:
        """Noise time per group, (B * n,). Given groups have 0; in joint, `times` ties the future's to the action's."""
        cfg, table = self.config.diffusion, self.network.modes[mode]

        def draw(stream: str) -> Tensor:
            u = draws.uniform(batch.seed, batch.step, batch.index, stream, (n,)).flatten()
            return draw_tau(u, cfg.tau_law, cfg.tau_density)

        action, future = draw("tau/action"), draw("tau/future")
        if mode == "joint" and cfg.times == "shared":
            future = action
        elif mode == "joint" and cfg.times == "future_noisier":
            future = torch.maximum(action, future)
        tau = {"action": action, "future_rgb": future, "future_depth": future}
        return {g: torch.zeros_like(t) if g in table.given else t for g, t in tau.items() if g in table.groups}

    def _draw_noise(self, name: str, batch: Batch, n: int, shape: Sequence[int]) -> Tensor:
        """Standard normal, (B * n, *shape)."""
        return draws.normal(batch.seed, batch.step, batch.index, f"noise/{name}", (n, *shape)).flatten(0, 1)

    def _prefix(self, batch: Batch) -> Tensor | None:
        """Which action steps are a known, clean prefix: (B, T) bool, or None if the training has none."""
        cfg = self.config.diffusion
        if cfg.prefix_share <= 0:
            return None
        u = draws.uniform(batch.seed, batch.step, batch.index, "prefix")
        longest = min(cfg.prefix_max_steps, self.spec.chunk_steps - 1)
        length = torch.where(u < cfg.prefix_share, 1 + (u / cfg.prefix_share * longest).long(), 0)
        prefix = torch.arange(self.spec.chunk_steps, device=u.device)[None] < length[:, None]
        rest = ~batch.is_pad["action"] & ~prefix  # a sample must keep something to learn
        return prefix & rest.any(1, keepdim=True)

    def _strayed(self, batch: Batch, ran: Tensor, action: Tensor, prefix_BT: Tensor) -> tuple[Tensor, Tensor]:
        """A prefix that strays at random, and a rest that returns to where it would have led: all (B, T, A) normalised.

        Experts hardly vary: their own prefixes never teach what to do after one that the policy would not have chosen.
        Deltas return as fast as actions in -1..1 can; what is absolute needs no return.
        """
        kind, roles, share = self.spec.action.get("kind"), self._roles, self.config.diffusion.prefix_noise
        if share <= 0:
            return ran, action
        B, T, A = action.shape
        free = torch.tensor([role == "position" or role == "yaw" for role in roles], device=action.device)
        steps = draws.normal(batch.seed, batch.step, batch.index, "prefix/steps", (T + 1, A)).to(action)
        size = share * draws.uniform(batch.seed, batch.step, batch.index, "prefix/size").to(action)
        stray = torch.where(
            free & prefix_BT[..., None], size[:, None, None] * (steps[:, :1] + steps[:, 1:]) / 2**0.5, 0
        )
        if kind != "delta":
            return ran + stray, action
        away, returned = torch.zeros_like(action[:, 0]), []
        for i in range(T):
            there = (action[:, i] - away).clamp(action[:, i].clamp(max=-1), action[:, i].clamp(min=1))
            there = torch.where(prefix_BT[:, i, None] | ~free, action[:, i], there)
            away = away + stray[:, i] + there - action[:, i]
            returned.append(there)
        return ran + stray, torch.stack(returned, 1)

    # ------------------------------------------------------------------------------------------- acting

    def prepare(self, compile: bool = False) -> PadPolicy:
        """Makes `predict` faster, once and for good, and returns self. A prepared policy is not trained further.

        On a CUDA device the image encoder works in bfloat16 from now on. With `compile`, the context and the denoising
        step are compiled for their shapes (as CUDA graphs on a GPU), and instructions are padded to multiples of 8
        tokens, so that there are few shapes: the first plan of each mode, batch size and padded length, and the first
        with a prefix, then takes a minute or two on a CPU. What a compiled network predicts differs by rounding: by
        less than 1e-5 of a normalised action in float32. Compiling for a CPU needs a C++ compiler; nothing is compiled
        before the first plan. CUDA graphs belong to the thread that first planned: let that one make all plans.
        """
        if self.device.type == "cuda":
            self.image_encoder.to_dtype(torch.bfloat16)
        self.compiled = compile
        if compile:
            self.fields = dataclasses.replace(self.fields, text_multiple=8)
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            for name in ("context", "denoise"):
                setattr(self.network, name, torch.compile(getattr(self.network, name), dynamic=False, mode=mode))
        return self

    @torch.no_grad()
    def predict(
        self,
        obs: Batch,
        *,
        mode: str = "policy",
        actions: Tensor | None = None,
        future: dict[str, Tensor] | None = None,
        prefix: Tensor | None = None,
        prefix_len: Tensor | None = None,
        guidance: Guidance | float | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        noise: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Prediction:
        """Denoises what the mode asks for. Keeps no state.

        Args:  obs: the observation fields of batch.py and the instruction.
               mode: "policy" obs -> action; "joint" obs -> action and future; "video" obs -> future;
                   "forward" obs and `actions` -> future; "inverse" obs and `future` -> action;
                   "video_inverse" obs -> future, then action: "video" and "inverse" one after the other.
               actions: (B, T, A) real environment actions.
               future: camera -> (B, F, H, W, 3) uint8, or latents (B, F, C, h, w).
               prefix: (B, T, A) real actions, of which the first prefix_len (B,) are kept and answered to.
               guidance: a scale over the text, of actions and futures alike, or a Guidance; None: as configured.
                   "forward" hears no text.
               sampler: one that the objective has, see padpolicy.config.SAMPLERS; None: the configured one.
               steps: of the sampler; None: the configured number.
               noise: field -> standard normal start, instead of drawing it from `generator`. Nothing else is random.
        Raises:  ValueError for an unknown mode or a missing input of the mode, naming it, and for a sampler or a number
                 of steps that the objective does not have.
        """
        if mode == STAGED:
            asked = {"guidance": guidance, "sampler": sampler, "steps": steps, "generator": generator}
            return self._in_stages(obs, noise or {}, {"prefix": prefix, "prefix_len": prefix_len}, asked)
        started = time.perf_counter()
        if mode not in self.network.modes:
            staged = [STAGED] if {"video", "inverse"} <= set(self.network.modes) else []
            raise ValueError(f"mode={mode!r}: expected one of {', '.join([*self.network.modes, *staged])}")
        table = self.network.modes[mode]
        axes = {"action" if group == "action" else "future" for group in table.groups}
        obs = _in_mode(table, obs.to(self.device))
        cfg = self.config.diffusion
        guidance = self._guidance(table, guidance)

        own = obs.instructions
        copies = guidance.copies
        presents = self.fields.presents(obs, table.groups)
        observed = _rows(self.fields.observed(obs, presents), copies)
        if not guidance.plain:
            self.fields.say(observed, [text for sample_text in own for text in guidance.texts(sample_text)])
        given = self._given(mode, obs, presents, actions, future)
        encoded = self._clock()
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()  # what the last plan kept is free again
        context = self.network.context(observed)
        understood = self._clock()

        time_s = {axis: self.network.when(x) for axis, x in self._times(len(obs)).items() if axis in axes}
        shapes = {name: (len(obs), *shape) for name, shape in self.noise_shapes(mode).items() if name not in given}
        x = {name: self._noise(name, shape, noise, generator) for name, shape in shapes.items()}
        clean_BT, keep = self._known_prefix(obs, prefix, prefix_len) if "action" in x else (None, None)

        def after(x: dict[str, Tensor], tau: float) -> dict[str, Tensor]:
            if clean_BT is None:
                return x
            return {**x, "action": torch.where(clean_BT[..., None], keep, x["action"])}

        factor = self.objective.out_factor
        known, times, clean = _rows(given, copies), _rows(time_s, copies), _rows(clean_BT, copies)

        def denoise(x: dict[str, Tensor], tau: float) -> dict[str, Tensor]:
            when = torch.full((len(obs) * copies,), tau, device=self.device)
            taus = {g: torch.zeros_like(when) if g in table.given else when for g in table.groups}
            out = self.network.denoise(mode, context, {**_rows(x, copies), **known}, taus, times, None, clean)
            combined = {}
            for name, answer in out.items():
                axis = _channel_axis(name, factor)
                guided = answer.shape[axis] // factor  # a learned variance is not
                if guidance.channels is not None and group_of(name) == "future_rgb":
                    guided = min(guided, guidance.channels)
                combined[name] = guidance.combine(answer.float(), name != "action", axis, guided)
            return combined

        x = sample(
            self.objective,
            denoise,
            x,
            cfg.steps if steps is None else steps,
            after,
            lambda name: _channel_axis(name, factor),
            sampler or cfg.sampler,
            {"action": cfg.clip_action} if cfg.clip_action else {},
        )
        denoised = self._clock()
        prediction = self._prediction(obs, presents, x, prefix, clean_BT)
        prediction.timings_ms = {
            "encode": 1e3 * (encoded - started),
            "context": 1e3 * (understood - encoded),
            "denoise": 1e3 * (denoised - understood),
            "total": 1e3 * (self._clock() - started),
        }
        return prediction

    def _in_stages(
        self, obs: Batch, noise: dict[str, Tensor], prefix: dict[str, Tensor | None], asked: dict[str, Any]
    ) -> Prediction:
        """UniPi (arXiv:2302.00111) with many frames, SuSIE (arXiv:2310.10639) with one.

        What both stages are `asked`, and what only the actions know (`prefix`).
        """
        future = {name: x for name, x in noise.items() if name != "action"}
        seen = self.predict(obs, mode="video", noise=future, **asked)
        done = self.predict(obs, mode="inverse", future=seen.future_latent, noise=noise, **prefix, **asked)
        took = {stage: ms + done.timings_ms[stage] for stage, ms in seen.timings_ms.items()}
        return Prediction(done.action, seen.future_latent, seen.future_depth, took)

    def _guidance(self, mode: Mode, asked: Guidance | float | None) -> Guidance:
        """What `predict` was asked for in a mode, or else what is configured."""
        if not mode.hears:
            return Guidance()
        cfg = self.config.diffusion
        if asked is None:
            asked = Guidance(
                cfg.guidance, future_scale=cfg.guidance_future or None, channels=cfg.guidance_channels or None
            )
        elif not isinstance(asked, Guidance):
            asked = Guidance(float(asked), channels=cfg.guidance_channels or None)
        # Where nothing is imagined, its scale must not cost a second row.
        return dataclasses.replace(asked, future_scale=None) if mode.denoised == ("action",) else asked

    def encode(self, frames: Tensor) -> Tensor:
        """Pictures (..., H, W, 3) uint8 as latents (..., C, h, w), float32."""
        return self.image_encoder.encode(frames.to(self.device))

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (..., C, h, w) as pictures (..., H, W, 3) uint8."""
        return self.image_encoder.decode(latent)

    def _prediction(
        self,
        obs: Batch,
        presents: dict[str, Tensor],
        x: dict[str, Tensor],
        prefix: Tensor | None,
        clean_BT: Tensor | None,
    ) -> Prediction:
        action = None
        if "action" in x:
            action = self.normalizer.unnormalize("action", x["action"].float(), self._robots(obs))
            if clean_BT is not None:  # to the last bit what was given, not its round trip through the normaliser
                action = torch.where(clean_BT[..., None], prefix.to(self.device, action.dtype), action)
        prediction = Prediction(action)
        for name in x:
            if name != "action":
                frame = self.fields.frames(x[name], presents[name])
                if group_of(name) == "future_rgb":
                    prediction.future_latent[camera_of(name)] = frame
                else:
                    prediction.future_depth[camera_of(name)] = self.depth_scale.restore(frame)
        return prediction

    def _given(
        self,
        mode: str,
        obs: Batch,
        presents: dict[str, Tensor],
        actions: Tensor | None,
        future: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """The clean inputs that a mode takes beside the observation."""
        if mode == "forward":
            if actions is None:
                raise ValueError("mode='forward' needs actions=(B, T, A): what the robot is going to do")
            expected = (len(obs), self.spec.chunk_steps, self.spec.action_dim)
            if tuple(actions.shape) != expected:
                raise ValueError(f"mode='forward': actions have shape {tuple(actions.shape)}, expected {expected}")
            return {"action": self.normalizer.normalize("action", actions.to(self.device).float(), self._robots(obs))}
        if mode == "inverse":
            missing = [camera for camera in self.spec.future_cameras if camera not in (future or {})]
            if missing:
                raise ValueError(f"mode='inverse' needs future={{camera: (B, F, H, W, 3) uint8}}; missing: {missing}")
            given = {}
            for camera in self.spec.future_cameras:
                name = f"future.latent_{camera}"
                frames = future[camera].to(self.device)
                latents = frames if frames.is_floating_point() else self.image_encoder.encode(frames)
                expected = (len(obs), len(self.spec.future_offsets_s), *presents[name].shape[2:])
                if tuple(latents.shape) != expected:
                    shape = tuple(latents.shape)
                    raise ValueError(f"mode='inverse': latents of {camera!r} have shape {shape}, expected {expected}")
                given[name] = self.fields.told(latents.float(), presents[name])
            return given
        return {}

    def _known_prefix(
        self, obs: Batch, prefix: Tensor | None, prefix_len: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which action steps are known (B, T), and the normalised actions that hold them."""
        if prefix is None:
            return None, None
        expected = (len(obs), self.spec.chunk_steps, self.spec.action_dim)
        if tuple(prefix.shape) != expected or prefix_len is None or tuple(prefix_len.shape) != expected[:1]:
            given = tuple(prefix.shape), None if prefix_len is None else tuple(prefix_len.shape)
            raise ValueError(
                f"prefix and prefix_len have shapes {given[0]} and {given[1]}, expected {expected} and {expected[:1]}"
            )
        steps = torch.arange(self.spec.chunk_steps, device=self.device)
        clean_BT = steps[None] < prefix_len.to(self.device)[:, None]
        values = present(prefix.to(self.device).float(), clean_BT)
        return clean_BT, self.normalizer.normalize("action", values, self._robots(obs))

    def _robots(self, obs: Batch) -> list[str]:
        return [robot or self.spec.robot for robot in obs.robot]

    def _times(self, batch: int) -> dict[str, Tensor]:
        """Seconds from now of every action step and imagined frame."""
        action = torch.arange(self.spec.chunk_steps, device=self.device, dtype=torch.float32) * self.spec.dt_s
        future = torch.tensor(self.spec.future_offsets_s, device=self.device, dtype=torch.float32)
        return {"action": action.expand(batch, -1), "future": future.expand(batch, -1)}

    def _noise(
        self,
        name: str,
        shape: tuple[int, ...],
        given: dict[str, Tensor] | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        if given is None or name not in given:
            return torch.randn(shape, generator=generator, device=generator.device if generator else self.device).to(
                self.device
            )
        if tuple(given[name].shape) != shape:
            raise ValueError(f"noise[{name!r}] has shape {tuple(given[name].shape)}, expected {shape}")
        return given[name].to(self.device, torch.float32)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def to_json(self) -> dict[str, Any]:
        """Configuration and statistics: all of the policy but its weights."""
        return {
            "config": asdict(self.config),
            "normalizer": self.normalizer.to_json(),
            "depth": self.depth_scale.to_json(),
            "fingerprints": {"image": self.image_encoder.fingerprint, "text": self.text_encoder.fingerprint},
        }


def _in_mode(mode: Mode, batch: Batch) -> Batch:
    """The batch without its instructions where the mode hears none, and with the actions that it is about."""
    fields, has = dict(batch.fields), dict(batch.has)
    if not mode.hears:
        has["text"] = torch.zeros_like(has["text"])
    batch = dataclasses.replace(batch, fields=fields, has=has)
    return _as_executed(batch) if mode.executed else batch


def _as_executed(batch: Batch) -> Batch:
    """The batch with the actions that the robot was told, where they are known to differ from those it should be."""
    if "executed" not in batch.fields:
        return batch
    told = torch.where(batch.has["executed"][:, None, None], batch.fields["executed"], batch.fields["action"])
    return dataclasses.replace(batch, fields={**batch.fields, "action": told})


def _noised_fields(spec: PolicySpec) -> list[str]:
    """Everything that is ever denoised, in the order of the groups."""
    rgb = [f"future.latent_{camera}" for camera in spec.future_cameras]
    return [*rgb, *(f"future.depth_{camera}" for camera in spec.future_depth_cameras), "action"]


def _pick(weights: Mapping[str, float], u: float) -> str | None:
    """The entry that u in [0, 1) falls on; None if there is none."""
    total, passed = sum(weights.values()), 0.0
    for name, weight in weights.items():
        passed += weight
        if u * total < passed:
            return name
    return next(reversed(list(weights)), None)


def _channel_axis(field: str, factor: int) -> int:
    """Where a field's channels stand, (mean, variance) along it: see Tokens.read."""
    return -1 if field == "action" else 2 if factor > 1 or group_of(field) == "future_rgb" else -1


def _rows(value: Any, n: int) -> Any:
    """Each row n times, one after the other: of a tensor, or of every tensor in a dict, tuple or Observed."""
    if n == 1 or value is None:
        return value
    if isinstance(value, Tensor):
        return value.repeat_interleave(n, 0)
    if isinstance(value, dict):
        return {name: _rows(v, n) for name, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_rows(v, n) for v in value)
    return dataclasses.replace(value, **{f.name: _rows(getattr(value, f.name), n) for f in dataclasses.fields(value)})
