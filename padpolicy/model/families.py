"""Families of networks behind one interface, `Denoiser`: ours, and those that it grew from or stands beside.

    model.family   what it is
    padpolicy      ours: a context that is computed once, tokens of futures and actions, a mode per sample

`family=NAME` on the command line chooses one together with what it needs (configs/family/).
"""

from __future__ import annotations

from padpolicy.model.dit import DiT
from padpolicy.model.network import Denoiser, Network
from padpolicy.model.tokens import Tokens
from padpolicy.spec import PolicyConfig


def build_network(config: PolicyConfig, channels: int, text_width: int, pooled_width: int, out_factor: int) -> Denoiser:
    """A new network of the family that the settings name.

    Args:  channels: of the image encoder's latents.   text_width, pooled_width: of the text encoder's answers.
           out_factor: numbers predicted per element: 2 with a learned variance.
    """
    return _padpolicy(config, channels, text_width, pooled_width, out_factor)


def _padpolicy(config: PolicyConfig, channels: int, text_width: int, pooled_width: int, out_factor: int) -> Network:
    model, spec = config.model, config.spec
    tokens = Tokens(
        width=model.width,
        channels=channels,
        patch=model.patch,
        depth_patch=model.depth_patch,
        action_dim=spec.action_dim,
        proprio_dim=spec.proprio_dim,
        text_width=text_width,
        pooled_width=pooled_width,
        cameras=sorted({*spec.cameras, *spec.depth_cameras, *spec.future_cameras, *spec.future_depth_cameras}),
        out_factor=out_factor,
        stem=(5 if model.stem_depth else 3) if model.eyes == "stem" else 0,
        coarse=model.coarse_cameras,
        glance=model.glance,
        prefix_sum=model.prefix_sum,
    )
    trunk = DiT(model.width, model.depth, model.heads, model.mlp_ratio, model.recompute)
    return Network(tokens, trunk, config.diffusion.coupling, model.text)
