"""Pictures to latents and back: a frozen diffusers AutoencoderKL, with latents of about unit variance per channel.

    uint8 (..., H, W, 3) -> [-1, 1] -> posterior mean -> (mean - m_C) / s_C -> float32 (..., C, h, w)

The posterior is never sampled: the same picture has the same latent. m and s come from `latent_stats.json` beside the
weights; weights of others without that file use their config's `shift_factor` and `scaling_factor`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from padpolicy.encoders.fingerprint import fingerprint
from padpolicy.shipped import shipped

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

STATS = "latent_stats.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
_READ: dict[str, Any] = {"use_safetensors": True, "torch_dtype": torch.float32, "low_cpu_mem_usage": False}
PIXELS_AT_ONCE = 32 * 96 * 96  # per pass through the network: about 200 MB for the shipped weights


class ImageEncoder:
    """A frozen VAE. No nn.Module on purpose: a policy refers to its encoder and must not save it with its weights."""

    def __init__(self, vae: AutoencoderKL, mean: Tensor, std: Tensor, device: torch.device | str = "cpu") -> None:
        """`mean`, `std` (C,): of the posterior mean's channels."""
        self.channels: int = vae.config.latent_channels
        self.downsample: int = 2 ** (len(vae.config.block_out_channels) - 1)
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (self.channels,) or not torch.isfinite(value).all():
                raise ValueError(f"latent {name}: expected {self.channels} finite numbers, got {value.tolist()}.")
        if not (std > 0).all():
            raise ValueError(f"latent std: expected positive numbers, got {std.tolist()}.")
        self.device, self.dtype = torch.device(device), torch.float32  # dtype: of what passes through the VAE
        stats = json.dumps([[f"{v:.6g}" for v in value.tolist()] for value in (mean, std)])
        # What latents depend on. A better decoder draws the same latents better: nothing is to be encoded anew.
        encoding = {name: p for name, p in vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}
        self.fingerprint = fingerprint(encoding, stats)
        vae = vae.float().eval().requires_grad_(False).to(self.device)
        self.vae = vae.to(memory_format=torch.channels_last)  # twice as fast on a CPU at these widths
        self.mean = mean.float().reshape(-1, 1, 1).to(self.device)
        self.std = std.float().reshape(-1, 1, 1).to(self.device)

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> ImageEncoder:
        """`name` is "shipped:NAME", a folder in diffusers' layout (or with one in its subfolder `vae`), or a hub name.

        Raises:  FileNotFoundError saying where it looked and what a folder must hold.
        """
        from diffusers import AutoencoderKL

        if name.startswith("shipped:"):
            folder = shipped(f"data/weights/{name.removeprefix('shipped:')}")
        else:
            folder = Path(name).expanduser()
        if not folder.is_dir():
            return cls._from_hub(name, device)
        if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
            folder = folder / "vae"
        missing = [file for file in ("config.json", WEIGHTS) if not (folder / file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"encoders.image={name!r}: {folder} lacks {' and '.join(missing)}. Expected an AutoencoderKL as "
                "diffusers' save_pretrained writes it, weights as safetensors; other formats are not read."
            )
        vae = AutoencoderKL.from_pretrained(folder, **_READ)
        return cls(vae, *_stats(vae, folder / STATS), device)

    @classmethod
    def _from_hub(cls, name: str, device: torch.device | str) -> ImageEncoder:
        from diffusers import AutoencoderKL

        problems = []
        for subfolder in (None, "vae"):
            try:
                vae = AutoencoderKL.from_pretrained(name, subfolder=subfolder, **_READ)
            except (OSError, ValueError) as error:
                problems.append(" ".join(str(error).split())[:200])
                continue
            return cls(vae, *_stats(vae, None), device)
        raise FileNotFoundError(
            f"encoders.image={name!r}: no such folder, and no AutoencoderKL of that name could be fetched from the hub "
            f"({problems[0]}). Give shipped:NAME, a folder with config.json and {WEIGHTS}, or a hub name while online."
        )

    def to_dtype(self, dtype: torch.dtype) -> None:
        """The type that pictures pass through the VAE in, float32 until now. Latents and pictures keep theirs.

        For acting only: prepared latents are float32's, the fingerprint does not tell the two apart, and the weights
        are rounded, so that they can no longer be saved.
        """
        self.vae.to(dtype)
        self.dtype = dtype

    @torch.no_grad()
    def encode(self, rgb: Tensor | np.ndarray) -> Tensor:
        """uint8 (..., H, W, 3) to standardised latents float32 (..., C, H / downsample, W / downsample).

        Raises:  ValueError for another dtype, another number of colours, or a size that is no multiple of `downsample`.
        """
        if isinstance(rgb, np.ndarray):
            rgb = torch.from_numpy(np.require(rgb, requirements=["C", "W"]))  # torch takes no read-only memory map
        if rgb.dtype != torch.uint8 or rgb.ndim < 3 or rgb.shape[-1] != 3:
            raise ValueError(f"image encoder: expected uint8 (..., H, W, 3), got {rgb.dtype} {tuple(rgb.shape)}.")
        *leading, height, width, _ = rgb.shape
        if height % self.downsample or width % self.downsample or not (height and width):
            raise ValueError(
                f"image encoder: {height}x{width} pixels; height and width must be multiples of {self.downsample}. "
                "Set data.image_size to one."
            )
        flat = rgb.reshape(-1, height, width, 3)
        out = torch.empty(
            len(flat), self.channels, height // self.downsample, width // self.downsample, device=self.device
        )
        step = max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(flat), step):
            # Channels last in memory is what the pictures already are: no copy is made for it.
            image = flat[start : start + step].to(self.device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            with torch.autocast(self.device.type, enabled=False):  # latents do not depend on the caller's precision
                mean = self.vae.encode(image.to(self.dtype)).latent_dist.mean.float()
            out[start : start + step] = (mean - self.mean) / self.std
        return out.reshape(*leading, *out.shape[1:])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents (..., C, h, w) of any float dtype to pictures uint8 (..., H, W, 3).

        Raises:  ValueError for another number of channels.
        """
        if latents.ndim < 3 or latents.shape[-3] != self.channels:
            raise ValueError(f"image decoder: expected (..., {self.channels}, h, w), got {tuple(latents.shape)}.")
        *leading, _, h, w = latents.shape
        flat = latents.reshape(-1, self.channels, h, w)
        height, width = h * self.downsample, w * self.downsample
        out = torch.empty(len(flat), height, width, 3, dtype=torch.uint8, device=self.device)
        step = max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(flat), step):
            raw = (flat[start : start + step].to(self.device, torch.float32) * self.std + self.mean).to(self.dtype)
            with torch.autocast(self.device.type, enabled=False):
                image = self.vae.decode(raw.contiguous(memory_format=torch.channels_last)).sample.float()
            out[start : start + step] = image.add_(1).mul_(127.5).round_().clamp_(0, 255).permute(0, 2, 3, 1)
        return out.reshape(*leading, height, width, 3)

    def save(self, folder: Path) -> None:
        """Writes weights (fp16), config and statistics; `load(folder)` reads them back with the same fingerprint.

        Raises:  ValueError after `to_dtype`.
        """
        import copy

        if self.dtype != torch.float32:
            raise ValueError(f"this image encoder was rounded to {self.dtype} for acting; load it anew to save it.")
        # The copy keeps this encoder's own weights in fp32.
        copy.deepcopy(self.vae).half().to(memory_format=torch.contiguous_format).save_pretrained(folder)
        stats = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        (folder / STATS).write_text(json.dumps(stats, indent=1) + "\n")


def _stats(vae: AutoencoderKL, path: Path | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) that standardise the latents."""
    if path is not None and path.is_file():
        stats = json.loads(path.read_text())
        if not isinstance(stats, dict) or {"mean", "std"} - set(stats):
            raise ValueError(
                f"{path}: expected an object with the lists `mean` and `std`, one number per latent channel."
            )
        return torch.tensor(stats["mean"]), torch.tensor(stats["std"])
    channels, config = vae.config.latent_channels, vae.config
    mean = torch.full((channels,), float(getattr(config, "shift_factor", None) or 0.0))
    return mean, torch.full((channels,), 1.0 / config.scaling_factor)


@torch.no_grad()
def fit_latent_stats(vae: AutoencoderKL, frames: np.ndarray) -> dict[str, Any]:
    """What `latent_stats.json` holds: per channel, mean and deviation of the posterior mean over uint8 (N, H, W, 3)."""
    channels = vae.config.latent_channels
    raw = ImageEncoder(vae, torch.zeros(channels), torch.ones(channels), next(vae.parameters()).device)
    latents = torch.cat([raw.encode(part) for part in np.array_split(frames, -(-len(frames) // 256))]).double()
    std, mean = torch.std_mean(latents, dim=(0, 2, 3), correction=0)
    return {"mean": [round(v, 6) for v in mean.tolist()], "std": [round(v, 6) for v in std.tolist()]}
