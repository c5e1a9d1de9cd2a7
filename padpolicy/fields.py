"""Between the data contract and the network: the fields of a batch as what the network reads and what it must predict.

Pixels become latents or stay pixels (for the stem), actions and proprioception go through the normaliser, depth is
reduced and standardised, words become tokens. What is absent becomes exactly 0 here, whatever stood in the batch.

Letters: B batch, O observation steps, F future frames, T action steps, A action dims, C h w latents, S reduced depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from padpolicy.batch import Batch, present
from padpolicy.data.normalizer import Normalizer
from padpolicy.encoders.depth import DepthScale, reduce_depth
from padpolicy.model.network import Observed, group_of
from padpolicy.spec import PolicyConfig

if TYPE_CHECKING:  # only their interface is used here, and diffusers takes seconds to import
    from padpolicy.encoders.image import ImageEncoder
    from padpolicy.encoders.text import TextEncoder


@dataclass(frozen=True)
class Fields:
    """Reads batches with the statistics and the frozen encoders of one policy. Holds nothing that is trained."""

    config: PolicyConfig
    normalizer: Normalizer
    depth_scale: DepthScale
    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    text_multiple: int = 1  # instructions are padded to a multiple of so many tokens: fewer shapes to compile for

    def has_frames(self, batch: Batch, axis: str, camera: str) -> Tensor:
        """(B,) bool: is there a picture of this camera, as pixels or as latents?"""
        return batch.has_field(f"{axis}.latent_{camera}") | batch.has_field(f"{axis}.rgb_{camera}")

    def has_future(self, batch: Batch) -> Tensor:
        """(B,) bool: does any imagined camera have a frame that is not padding?"""
        there = torch.zeros(len(batch), dtype=torch.bool)
        if "future" not in batch.is_pad:
            return there
        seen = (~batch.is_pad["future"]).any(1).cpu()
        for camera in self.config.spec.future_cameras:
            there |= self.has_frames(batch, "future", camera).cpu() & seen
        return there

    def has(self, batch: Batch, name: str) -> Tensor:
        """Presence of a noised field, whose latents may still be pixels in the batch."""
        if group_of(name) == "future_rgb":
            return self.has_frames(batch, "future", name.removeprefix("future.latent_"))
        return batch.has_field(name)

    def _latents(self, batch: Batch, axis: str, camera: str) -> Tensor | None:
        """Latents of a camera (B, O, C, h, w) float32, encoded here where only pixels came; 0 where absent."""
        latent, rgb = f"{axis}.latent_{camera}", f"{axis}.rgb_{camera}"
        x = None
        if latent in batch.fields and bool(batch.has[latent].any()):
            x = present(batch.fields[latent].float(), batch.has[latent])
        if rgb in batch.fields:
            rows = (batch.has[rgb] & ~batch.has_field(latent)).nonzero()[:, 0]
            if not len(rows):
                return x
            encoded = self.image_encoder.encode(batch.fields[rgb][rows]).float()
            x = encoded.new_zeros(len(batch), *encoded.shape[1:]) if x is None else x
            x = x.index_copy(0, rows, encoded)
        return x

    def _seen(self, batch: Batch, camera: str, presents: dict[str, Tensor]) -> Tensor | None:
        """Observed latents of a camera; where they are only those of the present, they are not encoded again."""
        present_B1Chw = presents.get(f"future.latent_{camera}") if self.config.spec.obs_steps == 1 else None
        if present_B1Chw is not None and bool(self.has_frames(batch, "obs", camera).any()):
            return present_B1Chw
        return self._latents(batch, "obs", camera)

    def actions(self, batch: Batch) -> Tensor:
        """(B, T, A) in the normaliser's units, 0 where absent."""
        return self._normalized(batch, "action")

    def _normalized(self, batch: Batch, name: str) -> Tensor:
        """Actions or proprioception in the normaliser's units, 0 where absent; each row by its own robot."""
        x = batch.fields[name].float()
        rows = batch.has[name].nonzero()[:, 0]
        robots = [batch.robot[i] for i in rows.tolist()]
        values = self.normalizer.normalize(name.removeprefix("obs."), x[rows], robots)
        return torch.zeros_like(x).index_copy(0, rows, values)

    def _depth(self, batch: Batch, name: str) -> tuple[Tensor, Tensor]:
        """Reduced, standardised depth and its validity; invalid and absent pixels are 0 (the mean depth)."""
        mm, valid = reduce_depth(batch.fields[name], self.config.model.depth_size)
        valid = present(valid, batch.has[name])
        return present(self.depth_scale.standardise(mm), valid), valid

    def _depth_pixels(self, batch: Batch, camera: str, rgb: Tensor) -> list[Tensor]:
        """What `stem_depth` adds to the pixels (B, O, H, W, 3) of a camera: (B, O, H, W, 2), 0 where there is no depth.

        Standardised depth is cut at 4 standard deviations: what stands far behind the workspace must not outshine it.
        """
        if not self.config.model.stem_depth:
            return []
        name = f"obs.depth_{camera}"
        if camera not in self.config.spec.depth_cameras or not bool(batch.has_field(name).any()):
            return [rgb.new_zeros(*rgb.shape[:-1], 2)]
        mm = batch.fields[name].view(torch.int16).to(torch.int32) & 0xFFFF  # unsigned
        valid = present(mm != 0, batch.has[name])
        near = self.depth_scale.standardise(mm.float()).clamp(-4, 4)
        return [torch.stack([present(near, valid), valid.float()], -1)]

    def presents(self, batch: Batch, groups: Sequence[str]) -> dict[str, Tensor]:
        """Per future field of these groups the newest observation, (B, 1, ...) as one frame of it; 0 where absent."""
        spec, found = self.config.spec, {}
        if "future_rgb" in groups:
            side = spec.image_size // self.image_encoder.downsample
            for camera in spec.future_cameras:
                x = self._latents(batch, "obs", camera)
                shape = (len(batch), 1, self.image_encoder.channels, side, side)
                found[f"future.latent_{camera}"] = batch.zeros(*shape) if x is None else x[:, -1:]
        if "future_depth" in groups:
            side = self.config.model.depth_size
            for camera in spec.future_depth_cameras:
                there = bool(batch.has_field(f"obs.depth_{camera}").any())
                x = self._depth(batch, f"obs.depth_{camera}")[0] if there else None
                found[f"future.depth_{camera}"] = batch.zeros(len(batch), 1, side, side) if x is None else x[:, -1:]
        return found

    def told(self, frames: Tensor, present: Tensor) -> Tensor:
        """Future frames as the network is told them: as their change since the present, or as they are."""
        return frames - present if self.config.diffusion.future == "change" else frames

    def frames(self, told: Tensor, present: Tensor) -> Tensor:
        """The inverse of `told`."""
        return told + present if self.config.diffusion.future == "change" else told

    def observed(self, batch: Batch, presents: dict[str, Tensor] | None = None) -> Observed:
        """The context's contents. Fields that no sample has are left out."""
        has: dict[str, Tensor] = {}
        latents, pixels, depth, proprio = {}, {}, {}, None
        for camera in self.config.spec.cameras:
            if self.config.model.eyes != "latents":
                name = f"obs.rgb_{camera}"
                if bool(batch.has_field(name).any()):
                    has[f"rgb_{camera}"] = batch.has[name]
                    rgb = present(batch.fields[name].float() / 127.5 - 1, batch.has[name])
                    pixels[camera] = torch.cat([rgb, *self._depth_pixels(batch, camera, rgb)], -1)
            elif (x := self._seen(batch, camera, presents or {})) is not None:
                latents[camera] = x
                has[f"rgb_{camera}"] = self.has_frames(batch, "obs", camera)
        for camera in [] if self.config.model.stem_depth else self.config.spec.depth_cameras:
            name = f"obs.depth_{camera}"
            if bool(batch.has_field(name).any()):
                has[f"depth_{camera}"] = batch.has[name]
                depth[camera] = self._depth(batch, name)
        if bool(batch.has_field("obs.proprio").any()):
            has["proprio"] = batch.has["obs.proprio"]
            proprio = self._normalized(batch, "obs.proprio")
        observed = Observed(latents, pixels, depth, proprio, has, batch.time_s["obs"], presents or {})
        self.say(observed, batch.instructions)
        return observed

    def say(self, observed: Observed, texts: list[str | None]) -> None:
        """Puts instructions into the context; None is the null text."""
        text = self.text_encoder.encode([text or "" for text in texts], self.config.encoders.text_tokens)
        observed.has["text"] = torch.tensor([text is not None for text in texts], device=observed.time_s.device)
        length = max(1, int(text.mask.sum(1).max()))  # padding that all share is left out
        length = -(-length // self.text_multiple) * self.text_multiple  # at most all there is
        observed.text_tokens = text.tokens[:, :length].to(observed.time_s.device)
        observed.text_mask = text.mask[:, :length].to(observed.time_s.device)
        observed.text_pooled = text.pooled.to(observed.time_s.device)

    def targets(
        self, batch: Batch, groups: Sequence[str], presents: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Clean contents of these token groups, and where they count (broadcastable to the contents)."""
        x0, valid = {}, {}
        if "future_rgb" in groups:
            for camera in self.config.spec.future_cameras:
                if (x := self._latents(batch, "future", camera)) is not None:
                    name = f"future.latent_{camera}"
                    x0[name] = self.told(x, presents[name])
                    seen_BF = self.has_frames(batch, "future", camera)[:, None] & ~batch.is_pad["future"]
                    valid[name] = seen_BF[:, :, None, None, None]
        if "future_depth" in groups:
            for camera in self.config.spec.future_depth_cameras:
                name = f"future.depth_{camera}"
                if bool(batch.has_field(name).any()):
                    x, pixels = self._depth(batch, name)
                    x0[name] = present(self.told(x, presents[name]), pixels)
                    seen_BF = batch.has[name][:, None] & ~batch.is_pad["future"]
                    valid[name] = pixels & seen_BF[:, :, None, None]
        if "action" in groups:
            x0["action"] = self.actions(batch)
            valid["action"] = (batch.has["action"][:, None] & ~batch.is_pad["action"])[..., None]
        return x0, valid
