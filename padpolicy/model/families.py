"""Families of networks behind one interface, `Denoiser`: ours, and those that it grew from or stands beside.

    model.family   what it is
    padpolicy      ours: a context that is computed once, tokens of futures and actions, a mode per sample
    pad            PAD as published (arXiv:2411.18179) over DiT: all in one sequence under one noise time; see pad.py
    unet           Diffusion Policy (arXiv:2303.04137), a 1-D U-Net over the actions; see diffusion_policy.py
    transformer    the same with a transformer decoder

`family=NAME` on the command line chooses one of the others together with what it needs (configs/family/).
"""

from __future__ import annotations

from torch import nn

from padpolicy.config import ConfigError, ModelConfig
from padpolicy.model.diffusion_policy import GROUPS, Condition, TransformerNetwork, UnetNetwork
from padpolicy.model.dit import DiT
from padpolicy.model.network import Denoiser, Network
from padpolicy.model.pad import PadNetwork
from padpolicy.model.resnet_eyes import FEATURES, smallest_side
from padpolicy.model.tokens import Tokens
from padpolicy.spec import PolicyConfig

ALONE = {  # settings that only some families have a place for; sizes, which recipes set for ours, are not among them
    "recompute": ("padpolicy", "pad"),
    "coarse_cameras": ("padpolicy",),
    "stem_depth": ("padpolicy",),
    "glance": ("padpolicy",),
    "prefix_sum": ("padpolicy",),
    "conditioning": ("pad",),
    "one_pose_token": ("pad",),
    "resnet_stages": ("unet", "transformer"),
}


def build_network(
    config: PolicyConfig, channels: int, text_width: int, pooled_width: int, out_factor: int, downsample: int
) -> Denoiser:
    """A new network of the family that the settings name.

    Args:  channels: of the image encoder's latents.   text_width, pooled_width: of the text encoder's answers.
           out_factor: numbers predicted per element: 2 with a learned variance.
           downsample: pixels per latent pixel.
    Raises:  ConfigError for settings that the family has no place for.
    """
    for key, families in ALONE.items():
        value = getattr(config.model, key)
        if config.model.family not in families and value != getattr(ModelConfig(), key):
            raise ConfigError(
                f"model.{key}={value!r} is for model.family={' and '.join(families)}; it is {config.model.family!r}."
            )
    if config.model.family != "padpolicy" and config.model.text == "tokens":
        raise ConfigError(f"model.text='tokens': model.family={config.model.family} hears the pooled sentence.")
    if config.model.family == "pad":
        return _pad(config, channels, pooled_width, out_factor, downsample)
    if config.model.family == "unet":
        return _unet(config, pooled_width, out_factor)
    if config.model.family == "transformer":
        return _transformer(config, pooled_width, out_factor)
    return _padpolicy(config, channels, text_width, pooled_width, out_factor)


def _padpolicy(config: PolicyConfig, channels: int, text_width: int, pooled_width: int, out_factor: int) -> Network:
    model, spec = config.model, config.spec
    if model.eyes == "resnet":
        raise ConfigError("model.eyes='resnet': model.family=padpolicy has 'latents' and 'stem'.")
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


def _pad(config: PolicyConfig, channels: int, pooled_width: int, out_factor: int, downsample: int) -> PadNetwork:
    model, spec, coupling = config.model, config.spec, config.diffusion.coupling
    camera, depth_camera = ("".join(names[:1]) for names in (spec.future_cameras, spec.future_depth_cameras))
    depth = [spec.depth_cameras, spec.future_depth_cameras]
    if not camera or not spec.cameras == spec.future_cameras == [camera] or depth not in ([[], []], [[camera]] * 2):
        raise ConfigError(
            f"model.family=pad looks through one camera and imagines it; data.cameras={spec.cameras}, depth_cameras="
            f"{spec.depth_cameras}, future_cameras={spec.future_cameras}, future_depth_cameras="
            f"{spec.future_depth_cameras}. Name one camera in the first and the third, and in both of depth or neither."
        )
    for key, value, known in (
        ("diffusion.coupling", coupling, ("pad", "full")),
        ("diffusion.times", config.diffusion.times, ("shared",)),
        ("data.obs_steps", spec.obs_steps, (1,)),
        ("model.eyes", model.eyes, ("latents",)),
    ):
        if value not in known:
            raise ConfigError(f"{key}={value!r}: model.family=pad has {' and '.join(map(repr, known))} (family=pad).")
    return PadNetwork(
        model.width,
        model.depth,
        model.heads,
        nn.Linear(pooled_width, model.width),
        side=spec.image_size // downsample,
        patch=model.patch,
        channels=channels,
        frames=len(spec.future_offsets_s),
        camera=camera,
        actions=spec.chunk_steps,
        action_dim=spec.action_dim,
        proprio_dim=spec.proprio_dim,
        one_token=model.one_pose_token,
        depth_size=model.depth_size if depth_camera else 0,
        depth_patch=model.depth_patch,
        depth_camera=depth_camera,
        out_factor=out_factor,
        mlp_ratio=model.mlp_ratio,
        masked=coupling == "pad",
        conditioning=model.conditioning,
        train_steps=config.diffusion.train_steps,
        recompute=model.recompute,
    )


def _unet(config: PolicyConfig, pooled_width: int, out_factor: int) -> UnetNetwork:
    model, spec = config.model, config.spec
    if model.width % GROUPS:
        raise ConfigError(f"model.width={model.width}: model.family=unet takes multiples of {GROUPS}.")
    condition = _condition(config, pooled_width, FEATURES)
    return UnetNetwork(
        condition, config.diffusion.train_steps, spec.obs_steps, spec.action_dim, model.width, out_factor
    )


def _transformer(config: PolicyConfig, pooled_width: int, out_factor: int) -> TransformerNetwork:
    model, spec = config.model, config.spec
    return TransformerNetwork(
        _condition(config, pooled_width, model.width),
        config.diffusion.train_steps,
        spec.obs_steps,
        spec.chunk_steps,
        spec.action_dim,
        model.width,
        model.depth,
        model.heads,
        model.mlp_ratio,
        out_factor,
    )


def _condition(config: PolicyConfig, pooled_width: int, said: int) -> Condition:
    """What Diffusion Policy is told. It sees pixels alone, and imagines nothing."""
    model, spec = config.model, config.spec
    if model.eyes != "resnet":
        raise ConfigError(
            f"model.eyes={model.eyes!r}: model.family={model.family} has 'resnet' (family={model.family})."
        )
    if spec.cameras and spec.image_size < (smallest := smallest_side(model.resnet_stages)):
        raise ConfigError(f"data.image_size={spec.image_size}: model.eyes=resnet sees nothing below {smallest} pixels.")
    if config.diffusion.coupling != "blind":
        raise ConfigError(
            f"diffusion.coupling={config.diffusion.coupling!r}: model.family={model.family} imagines nothing that an "
            "action could see; leave it out."
        )
    for key in ("depth_cameras", "future_cameras", "future_depth_cameras"):
        if getattr(spec, key):
            raise ConfigError(
                f"data.{key}={getattr(spec, key)}: model.family={model.family} sees rgb alone and imagines nothing; "
                f"set data.{key}=[] (family={model.family} does)."
            )
    return Condition(spec.cameras, spec.proprio_dim, pooled_width, said, model.resnet_stages)
