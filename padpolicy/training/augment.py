"""Random shift, crop and colour of pictures while training, on the device of the model.

One draw per sample, a function of (seed, step, index), holds for all its frames, now and later, for all cameras, for
rgb and depth alike: what moves between two frames still moved by as much, and a depth pixel still lies behind its
colour. Robot numbers are left as they are, so keep shifts small where a policy works out places from pixels.

Letters: B batch, O frames of a field, H W pixels.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from padpolicy import draws
from padpolicy.batch import Batch
from padpolicy.config import AugmentConfig

LUMA = (0.299, 0.587, 0.114)  # Rec. 601: how bright red, green and blue look


def augments(cfg: AugmentConfig) -> bool:
    """Whether anything is changed at all."""
    return any((cfg.shift_px, cfg.crop, cfg.brightness, cfg.contrast, cfg.saturation))


def augment(batch: Batch, cfg: AugmentConfig) -> Batch:
    """The batch with its rgb (B, O, H, W, 3) uint8 and depth (B, O, H, W) uint16 pictures changed.

    Raises:  ValueError if the batch has latents: pictures beside them would show another place.
    """
    if not augments(cfg):
        return batch
    if latents := [name for name in batch.fields if ".latent_" in name]:
        raise ValueError(f"augmentation needs pictures, and the batch has {latents[0]}: set data.cache_latents=false.")
    u_BK = draws.uniform(batch.seed, batch.step, batch.index, "augment", (6,)) * 2 - 1  # in [-1, 1)
    fields = dict(batch.fields)
    for name, frames in batch.fields.items():
        if ".rgb_" in name:
            fields[name] = _recoloured(_moved(frames, u_BK, cfg, "bilinear"), u_BK, cfg).round().clamp(0, 255).byte()
        elif ".depth_" in name:  # nearest: a mean of near and far, or of something and nothing, is no depth
            moved = _moved(frames.view(torch.int16).int()[..., None] & 0xFFFF, u_BK, cfg, "nearest")
            fields[name] = moved[..., 0].int().to(torch.int16).view(torch.uint16)
    return dataclasses.replace(batch, fields=fields)


def _moved(frames_BOHWC: Tensor, u_BK: Tensor, cfg: AugmentConfig, mode: str) -> Tensor:
    """Cropped by up to `crop` and shifted by up to `shift_px`, float32; what comes in at an edge repeats it."""
    x = frames_BOHWC.float()
    if not cfg.crop and not cfg.shift_px:
        return x
    b, o, height, width, c = x.shape
    scale_B = 1 - cfg.crop * (u_BK[:, 2] + 1) / 2
    theta_B23 = torch.zeros(b, 2, 3, device=x.device)
    for axis, side in ((0, width), (1, height)):
        theta_B23[:, axis, axis] = scale_B
        # grid_sample counts from -1 to 1. A cropped picture may lie anywhere in the whole one.
        theta_B23[:, axis, 2] = u_BK[:, axis] * (2 * cfg.shift_px / side + 1 - scale_B)
    grid = F.affine_grid(theta_B23, [b, 1, height, width], align_corners=False)
    planes = x.permute(0, 1, 4, 2, 3).reshape(b, o * c, height, width)
    moved = F.grid_sample(planes, grid, mode=mode, padding_mode="border", align_corners=False)
    return moved.reshape(b, o, c, height, width).permute(0, 1, 3, 4, 2)


def _recoloured(x_BOHW3: Tensor, u_BK: Tensor, cfg: AugmentConfig) -> Tensor:
    """Brightness, contrast (around mid-grey) and saturation, each changed by up to its share."""
    if not (cfg.brightness or cfg.contrast or cfg.saturation):
        return x_BOHW3
    light_B, contrast_B, colour_B = (
        1 + share * u_BK[:, k, None, None, None, None]
        for k, share in ((3, cfg.brightness), (4, cfg.contrast), (5, cfg.saturation))
    )
    grey = (x_BOHW3 * x_BOHW3.new_tensor(LUMA)).sum(-1, keepdim=True)
    return ((grey + (x_BOHW3 - grey) * colour_B - 127.5) * contrast_B + 127.5) * light_B
