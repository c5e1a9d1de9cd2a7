"""Which values a setting may have, alone and beside others."""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from padpolicy.config.schema import (
    API_KEY_VARIABLE,
    FAMILIES,
    SAMPLERS,
    BenchConfig,
    CollectConfig,
    ConfigError,
    ServeConfig,
    TrainConfig,
)

_SAMPLERS = ("auto", *SAMPLERS["flow"], *SAMPLERS["ddpm"])

_CHOICES = {
    "model.family": tuple(FAMILIES),
    "model.eyes": ("latents", "stem", "resnet"),
    "model.resnet_stages": (1, 2, 3, 4),
    "model.text": ("tokens", "pooled", "both"),
    "model.conditioning": ("in_context", "cross_attention", "adaln", "adaln_zero"),
    "diffusion.objective": ("flow", "ddpm"),
    "diffusion.coupling": ("blind", "pad", "full"),
    "diffusion.future": ("change", "frame"),
    "diffusion.times": ("shared", "independent", "future_noisier"),
    "diffusion.tau_law": ("uniform", "logit_normal", "beta", "importance"),
    "diffusion.predict_action": ("clean", "velocity", "noise"),
    "diffusion.predict_future": ("clean", "velocity", "noise"),
    "diffusion.loss": ("auto", "simple", "bound", "hybrid"),
    "diffusion.schedule": ("linear", "cosine", "shifted"),
    "diffusion.sampler": _SAMPLERS,
    "evaluation.sampler": ("", *_SAMPLERS),
    "sampler": ("", *_SAMPLERS),
    "training.precision": ("bf16", "fp32"),
    "evaluation.paraphrase": ("canonical", "random", "held_out"),
    "paraphrase": ("canonical", "random", "held_out"),
    "floor": ("", "no_image", "no_text", "replay"),
    "what": ("ratios", "latency", "family"),
    "trunk": ("", "S", "B", "L", "XL"),
    "execution": ("chunk", "waypoint"),
    "evaluation.execution": ("chunk", "waypoint"),
    "controller.execution": ("rtc", "naive", "ensemble", "sync"),
    "brain": ("auto", "thread", "process"),
    "monitor.on_alarm": ("replan", "slow", "stop"),
}

_AT_LEAST = {
    "controller.exec_steps": 1,
    "controller.latency_window": 1,
    "episodes": 1,
    "data.obs_steps": 1,
    "data.chunk_steps": 1,
    "data.workers": 0,
    "encoders.text_tokens": 1,
    "model.width": 1,
    "model.depth": 1,
    "model.heads": 1,
    "model.patch": 1,
    "model.depth_size": 1,
    "model.depth_patch": 1,
    "model.mlp_ratio": 0,
    "diffusion.prefix_max_steps": 1,
    "diffusion.prefix_noise": 0,
    "diffusion.weight_action": 0,
    "diffusion.weight_rgb": 0,
    "diffusion.weight_depth": 0,
    "training.lr": 0,
    "training.weight_decay": 0,
    "training.warmup_steps": 0,
    "image_size": 1,
    "diffusion.action_draws": 1,
    "diffusion.steps": 1,
    "diffusion.clip_action": 0,
    "diffusion.guidance_channels": 0,
    "augment.shift_px": 0,
    "training.steps": 1,
    "training.max_seconds": 0,
    "training.batch_size": 1,
    "training.accumulate": 1,
    "training.log_every": 0,
    "training.checkpoint_every": 0,
    "training.validate_every": 0,
    "training.imagine_every": 0,
    "training.evaluate_every": 0,
    "training.keep_checkpoints": 1,
    "training.threads": 0,
    "evaluation.episodes_per_task": 1,
    "evaluation.exec_steps": 1,
    "evaluation.num_envs": 1,
    "evaluation.steps": 0,
    "episodes_per_task": 1,
    "exec_steps": 1,
    "num_envs": 1,
    "steps": 0,
    "workers": 1,
    "port": 0,
    "max_connections": 1,
    "max_message_mb": 1,
    "max_steps": 1,
    "repeats": 1,
    "batch_size": 0,
    "env_steps": 1,
    "plans": 1,
    "pad_steps": 0,
    "threads": 0,
    "train_seconds": 0,
    "train_steps": 0,
}

_BENCH_READS = {  # what each of the three looks at, besides `out` and `threads`
    "ratios": ("device", "checkpoint", "recipe", "repeats", "batch_size", "env_steps"),
    "latency": (
        "device",
        "checkpoint",
        "recipe",
        "plans",
        "steps",
        "pad_steps",
        "compile",
        "trunk",
        "image_size",
        "seed",
    ),
    "family": (),
}

_SHARES = (
    "robot.camera_drop",
    "controller.latency_quantile",
    "data.video_ratio",
    "data.val_fraction",
    "diffusion.text_dropout",
    "diffusion.prefix_share",
    "training.final_lr_fraction",
    "training.ema",
    "diffusion.obs_dropout",
    "augment.crop",
    "augment.brightness",
    "augment.contrast",
    "augment.saturation",
    "noise",
)


def _get(cfg: Any, key: str) -> Any:
    """The value of a dotted name, or None where this verb has no such setting."""
    for part in key.split("."):
        cfg = getattr(cfg, part, None)
    return cfg


def check(cfg: Any) -> None:
    """The rules on values and across fields. Raises ConfigError naming the setting, what it is and what it may be."""

    def need(ok: bool, message: str) -> None:
        if not ok:
            raise ConfigError(message)

    for key, choices in _CHOICES.items():
        value = _get(cfg, key)
        need(value is None or value in choices, f"{key}={value!r}: expected one of {', '.join(map(repr, choices))}.")
    for key, least in _AT_LEAST.items():
        value = _get(cfg, key)
        numbers = value if isinstance(value, list) else [value]
        need(all(number is None or number >= least for number in numbers), f"{key}={value}: at least {least}.")
    for key in _SHARES:
        value = _get(cfg, key)
        need(value is None or 0 <= value <= 1, f"{key}={value}: a share, between 0 and 1.")
    if isinstance(cfg, TrainConfig):
        _check_train(cfg, need)
    if isinstance(cfg, ServeConfig):
        _check_serve(cfg, need)
    if isinstance(cfg, CollectConfig):
        same = cfg.env.options.get("goals") == "fixed" and cfg.noise == 0 and cfg.episodes_per_task > 1
        need(
            not same,
            f"env.options.goals=fixed with noise=0: the {cfg.episodes_per_task} episodes of a task would all be "
            "the same one. Give noise=0.5, or episodes_per_task=1.",
        )
    if isinstance(cfg, BenchConfig):
        _check_bench(cfg, need)
        return
    out = getattr(cfg, "out", "")
    need(not (out and Path(out).is_file()), f"out={out} is a file; expected a directory to write into.")


def _check_train(cfg: TrainConfig, need: Callable[[bool, str], None]) -> None:
    data, model, diffusion, training = cfg.data, cfg.model, cfg.diffusion, cfg.training
    need(bool(data.path) or not data.more, "data.more=[…] stands beside data.path=STORE: give that one first.")
    need(bool(data.path or data.videos), "Nothing to train on: give data.path=STORE, data.videos=[FOLDER, …] or both.")
    need(data.dt_s > 0, f"data.dt_s={data.dt_s}: seconds between actions, more than 0.")
    need(
        all(o > 0 for o in data.future_offsets_s), f"data.future_offsets_s={data.future_offsets_s}: seconds after now."
    )
    headless = model.family == "unet"
    need(
        headless or model.width % model.heads == 0,
        f"model.width={model.width} is not a multiple of model.heads={model.heads}.",
    )
    need(model.width % 4 == 0, f"model.width={model.width}: 2-D positions need a multiple of 4.")
    need(
        model.depth_size % model.depth_patch == 0,
        f"model.depth_size={model.depth_size} is not a multiple of model.depth_patch={model.depth_patch}.",
    )
    need(
        training.batch_size % training.accumulate == 0,
        f"training.batch_size={training.batch_size} is not a multiple of training.accumulate={training.accumulate}.",
    )
    betas = training.betas
    need(len(betas) == 2 and all(0 <= b < 1 for b in betas), f"training.betas={betas}: two numbers in [0, 1).")
    need(training.clip_norm > 0, f"training.clip_norm={training.clip_norm}: more than 0; 1e9 shortens no gradient.")
    _check_diffusion(cfg, need)
    need(
        not model.stem_depth or model.eyes == "stem",
        f"model.stem_depth=true is for model.eyes=stem; it is {model.eyes!r}.",
    )
    need(
        not model.glance or model.text != "tokens",
        "model.glance=true asks with the pooled sentence, and model.text=tokens has none: use model.text=both.",
    )
    need(
        cfg.evaluation.exec_steps <= data.chunk_steps,
        f"evaluation.exec_steps={cfg.evaluation.exec_steps} is more than data.chunk_steps={data.chunk_steps}.",
    )
    need(
        not any(vars(cfg.augment).values()) or not data.cache_latents,
        "augment changes pictures, and data.cache_latents=true keeps what they looked like: set it to false.",
    )
    trained = {mode for mode, share in diffusion.modes.items() if share > 0}
    need(
        not diffusion.prefix_share or bool(trained & {"policy", "joint"}),
        f"diffusion.prefix_share={diffusion.prefix_share} teaches prefixes in the modes policy and joint, of which "
        "diffusion.modes has none: set prefix_share=0.",
    )
    if trained == {"video", "inverse"}:  # acts by both, one after the other
        ahead_s, chunk_s = max(data.future_offsets_s, default=0), data.chunk_steps * data.dt_s
        need(
            abs(ahead_s - chunk_s) <= data.dt_s / 2,
            f"data.future_offsets_s={data.future_offsets_s}: the last frame is where the actions lead, and "
            f"data.chunk_steps={data.chunk_steps} of data.dt_s={data.dt_s:g} end at {chunk_s:g} s.",
        )
    unguided = diffusion.guidance == 1 and diffusion.guidance_future in (0, 1)
    need(
        unguided or diffusion.text_dropout > 0,
        "diffusion.guidance compares with the null text, which diffusion.text_dropout=0 never teaches.",
    )
    known = FAMILIES[model.family] or ("policy", "joint", "forward", "inverse", "video")
    for name, modes in (("modes", diffusion.modes), ("video_modes", diffusion.video_modes)):
        for mode, weight in modes.items():
            near = difflib.get_close_matches(mode, known, n=1) or [", ".join(known)]
            of = f" model.family={model.family} has {', '.join(known)}." if FAMILIES[model.family] else ""
            unused = not weight or (name == "video_modes" and not data.videos)
            there = mode in known or (bool(of) and unused)
            need(there, f"diffusion.{name}: unknown mode {mode!r}; did you mean {near[0]}?{of}")
            need(weight >= 0, f"diffusion.{name}.{mode}={weight}: at least 0.")
        need(any(modes.values()), f"diffusion.{name}: every mode has weight 0; nothing would be trained.")
        used = data.path if name == "modes" else data.videos
        need(
            not used or bool(data.future_cameras) or modes.get("policy", 0) > 0,
            f"diffusion.{name}={modes} imagine or look at a future, and data.future_cameras is empty: nothing would be "
            "trained.",
        )


def _check_bench(cfg: BenchConfig, need: Callable[[bool, str], None]) -> None:
    looks_at, plain = ("what", "out", "threads", *_BENCH_READS[cfg.what]), BenchConfig()
    for key in vars(plain):
        if key not in looks_at and getattr(cfg, key) != getattr(plain, key):
            others = " and ".join(what for what, reads in _BENCH_READS.items() if key in reads)
            raise ConfigError(f"{key} is a setting of padpolicy bench {others}, not of {cfg.what}.")
    if cfg.what == "family":
        need(bool(cfg.out), "padpolicy bench family needs out=FOLDER: it trains for hours, and goes on there.")
        need(not Path(cfg.out).is_file(), f"out={cfg.out} is a file; expected a directory to write into.")
    else:
        is_folder = bool(cfg.out) and Path(cfg.out).is_dir()
        need(not is_folder, f"out={cfg.out} is a directory; expected a JSON file to write.")
    need(cfg.image_size % 32 == 0, f"image_size={cfg.image_size}: trunks take multiples of 32 pixels.")


def _check_serve(cfg: ServeConfig, need: Callable[[bool, str], None]) -> None:
    need(cfg.seed >= 0, f"seed={cfg.seed}: at least 0.")
    need(cfg.port <= 65535, f"port={cfg.port}: at most 65535.")
    for key in ("handshake_s", "ping_s", "idle_s"):
        need(getattr(cfg, key) > 0, f"{key}={getattr(cfg, key)}: seconds, more than 0.")
    need(
        bool(cfg.certfile) == bool(cfg.keyfile), "certfile and keyfile belong together: give both for TLS, or neither."
    )
    key = cfg.api_key or os.environ.get(API_KEY_VARIABLE, "")
    need(
        key.isascii() and (not key or key.isprintable()) and " " not in key,
        "api_key: printable ASCII characters without spaces, as it travels in an HTTP header.",
    )
    need(
        _only_here(cfg.host) or bool(key) or cfg.insecure,
        f"host={cfg.host} can be reached from other machines, and there is no key: set {API_KEY_VARIABLE} (or "
        "api_key=…), listen on host=127.0.0.1, or say insecure=true if everybody may use this policy.",
    )


def _only_here(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_diffusion(cfg: TrainConfig, need: Callable[[bool, str], None]) -> None:
    diffusion = cfg.diffusion
    ddpm_only = {
        "learn_variance": (diffusion.learn_variance, "true"),
        "predict_action": (diffusion.predict_action == "noise", "noise"),
        "predict_future": (diffusion.predict_future == "noise", "noise"),
        "loss": (diffusion.loss in ("bound", "hybrid"), diffusion.loss),
        "schedule": (diffusion.schedule != "linear", diffusion.schedule),
        "clip_action": (diffusion.clip_action > 0, diffusion.clip_action),
    }
    for key, (used, value) in ddpm_only.items():
        need(
            not used or diffusion.objective == "ddpm",
            f"diffusion.{key}={value} needs diffusion.objective=ddpm; it is {diffusion.objective!r}.",
        )
    need(
        diffusion.schedule == "shifted" or diffusion.schedule_shift == 1,
        f"diffusion.schedule_shift={diffusion.schedule_shift} needs diffusion.schedule=shifted.",
    )
    need(diffusion.schedule_shift > 0, f"diffusion.schedule_shift={diffusion.schedule_shift}: a ratio, more than 0.")
    samplers = SAMPLERS[diffusion.objective]
    for key, sampler in (("diffusion.sampler", diffusion.sampler), ("evaluation.sampler", cfg.evaluation.sampler)):
        need(
            sampler in ("", "auto", *samplers),
            f"{key}={sampler}: diffusion.objective={diffusion.objective} has {', '.join(samplers)}.",
        )
    need(
        bool(diffusion.tau_density) == (diffusion.tau_law == "importance"),
        "diffusion.tau_law=importance and diffusion.tau_density=[…] belong together: give both, or neither.",
    )
    need(
        all(density > 0 for density in diffusion.tau_density),
        f"diffusion.tau_density={diffusion.tau_density}: each more than 0, or some times are never trained.",
    )
    need(
        diffusion.tau_law != "importance" or diffusion.times != "future_noisier",
        "diffusion.tau_law=importance weighs a loss by the density of one time, and diffusion.times=future_noisier "
        "makes a time of two: use times=shared or times=independent.",
    )
    if diffusion.objective == "ddpm":
        _check_ddpm(cfg, need)


def _check_ddpm(cfg: TrainConfig, need: Callable[[bool, str], None]) -> None:
    diffusion, train_steps = cfg.diffusion, cfg.diffusion.train_steps
    need(
        diffusion.loss != "simple" or not diffusion.learn_variance,
        "diffusion.loss=simple never trains a variance, and diffusion.learn_variance=true: use loss=hybrid or bound.",
    )
    need(
        diffusion.loss != "hybrid" or diffusion.learn_variance,
        "diffusion.loss=hybrid trains a variance: it needs diffusion.learn_variance=true.",
    )
    need(
        diffusion.loss != "bound"
        or (diffusion.tau_law in ("uniform", "importance") and diffusion.times != "future_noisier"),
        "diffusion.loss=bound is a mean over uniform times: it needs diffusion.tau_law=uniform or importance, and "
        "diffusion.times=shared or independent.",
    )
    need(train_steps > 20, f"diffusion.train_steps={train_steps}: more than 20, or a step of ddpm leaves no signal.")
    own = SAMPLERS["ddpm"][0] if diffusion.sampler == "auto" else diffusion.sampler
    evaluated = {"": own, "auto": SAMPLERS["ddpm"][0]}.get(cfg.evaluation.sampler, cfg.evaluation.sampler)
    for key, steps, sampler in (
        ("diffusion.steps", diffusion.steps, own),
        ("evaluation.steps", cfg.evaluation.steps or diffusion.steps, evaluated),
    ):
        if sampler == "ancestral":
            need(steps <= train_steps, f"{key}={steps} is more than diffusion.train_steps={train_steps}.")
        else:
            need(
                train_steps % steps == 0,
                f"{key}={steps} does not divide diffusion.train_steps={train_steps}: {sampler} would stop short of "
                "clean data.",
            )
