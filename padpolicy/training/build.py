"""From settings to what a run needs: the data with its statistics, and a new policy that fits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from padpolicy.batch import Batch
from padpolicy.config import ConfigError, TrainConfig
from padpolicy.data.dataset import BatchStream, Mixture, open_mixture
from padpolicy.data.latents import encode_store
from padpolicy.data.normalizer import Normalizer
from padpolicy.encoders.depth import DepthScale
from padpolicy.encoders.image import ImageEncoder
from padpolicy.encoders.text import TextEncoder
from padpolicy.policy import PadPolicy
from padpolicy.spec import PolicyConfig, PolicySpec
from padpolicy.training.augment import augments
from padpolicy.training.distributed import World

VALIDATION_BATCHES = 4
DEPTH_FRAMES = 512  # frames that the scale of depth is fitted on


@dataclass
class Data:
    """The training stream of this process, a fixed set of validation batches, and where they come from."""

    train: BatchStream
    validation: list[Batch]
    mixture: Mixture
    image_encoder: ImageEncoder
    text_encoder: TextEncoder


def open_data(cfg: TrainConfig, device: str, here: World, progress: Callable[[int, int], None] | None = None) -> Data:
    """Opens the sources, encodes frames that have no latents yet (rank 0 does), and makes the streams.

    Raises:  StoreError, ConfigError: a source that is missing, damaged or does not fit.
    """
    image_encoder = ImageEncoder.load(cfg.encoders.image, device)
    text_encoder = TextEncoder.load(cfg.encoders.text, device)
    pixels = cfg.model.eyes != "latents"
    cameras = [] if pixels else cfg.data.cameras
    if cfg.data.image_size % image_encoder.downsample:
        raise ConfigError(
            f"data.image_size={cfg.data.image_size} is not a multiple of {image_encoder.downsample}, "
            f"what the image encoder {cfg.encoders.image!r} reduces by."
        )
    if (cfg.data.depth_cameras or cfg.data.future_depth_cameras) and cfg.data.image_size % cfg.model.depth_size:
        raise ConfigError(
            f"data.image_size={cfg.data.image_size} is not a multiple of model.depth_size={cfg.model.depth_size}, "
            "what depth images are reduced to."
        )
    side = cfg.data.image_size // image_encoder.downsample
    if (cameras or cfg.data.future_cameras) and side % cfg.model.patch:
        raise ConfigError(
            f"data.image_size={cfg.data.image_size} gives latents of {side} x {side}, which is not a multiple of "
            f"model.patch={cfg.model.patch}."
        )
    latents_of = "" if augments(cfg.augment) else image_encoder.fingerprint  # of changed pictures there are none
    mixture = open_mixture(cfg.data, latents_of, pixels)
    if cfg.data.cache_latents:
        if here.leads:
            for source in mixture.sources:
                wanted = {source.stored_name(c) for c in {*cameras, *cfg.data.future_cameras}}
                encode_store(source.store.path, image_encoder, sorted(wanted), cfg.data.image_size, progress)
        here.barrier()
        mixture = open_mixture(cfg.data, latents_of, pixels)  # again: the latents are there now
    train = BatchStream(mixture, cfg.training.batch_size, cfg.seed, here.rank, here.size)
    validation = []
    if mixture.n_windows("val"):
        stream = BatchStream(mixture, cfg.training.batch_size, cfg.seed, split="val")
        validation = [stream[step] for step in range(VALIDATION_BATCHES)]
    return Data(train, validation, mixture, image_encoder, text_encoder)


def build_policy(
    cfg: TrainConfig, data: Data, device: str, statistics: tuple[Normalizer, DepthScale] | None = None
) -> PadPolicy:
    """A new policy. Its statistics are those of the data, unless others are given: those that a run was begun with."""
    mixture, settings = data.mixture, cfg.data
    action = mixture.action_spec
    spec = PolicySpec(
        cameras=settings.cameras,
        depth_cameras=settings.depth_cameras,
        future_cameras=settings.future_cameras,
        future_depth_cameras=settings.future_depth_cameras,
        image_size=settings.image_size,
        obs_steps=settings.obs_steps,
        chunk_steps=settings.chunk_steps,
        dt_s=settings.dt_s,
        future_offsets_s=settings.future_offsets_s,
        action_dim=len(action.names) if action else 1,  # videos alone: the action's layers wait for a robot
        proprio_dim=len(mixture.proprio_names),
        action=asdict(action) if action else {},
        robot=mixture.robot,
        renderer=mixture.renderer,
    )
    if statistics is None:
        normalizer = mixture.fit_normalizer() if action else Normalizer({})
        statistics = normalizer, fit_depth_scale(mixture, settings)
    config = PolicyConfig(spec, cfg.model, cfg.diffusion, cfg.encoders)
    return PadPolicy(config, *statistics, data.image_encoder, data.text_encoder).to(device)


def fit_depth_scale(mixture: Mixture, settings) -> DepthScale:
    """Mean and standard deviation of valid depth, over frames spread evenly through the sources."""
    frames = []
    for source in mixture.sources:
        for camera in sorted({*settings.depth_cameras, *settings.future_depth_cameras}):
            if f"depth_{camera}" in source.store.fields and source.store.n_rows:
                rows = np.unique(np.linspace(0, source.store.n_rows - 1, DEPTH_FRAMES).astype(int))
                frames.append(source.store.rows(f"depth_{camera}", rows))
    return DepthScale.fit(frames)
