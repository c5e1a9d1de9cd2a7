"""The measurements: pairs of things that take turns in one run, so that other load and heat meet both alike.

On the CPU with one thread, times are CPU time of this process: what else runs on the machine hardly counts. With more
threads or on a GPU they are wall time. Latencies by stage are always wall time, as a robot would see them.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from padpolicy import config
from padpolicy.batch import Batch, collate
from padpolicy.bench.bare import BareTraining, Size
from padpolicy.bench.environment import step_rates
from padpolicy.config import BenchConfig, ConfigError, TrainConfig
from padpolicy.data.collect import ENVS
from padpolicy.data.normalizer import Normalizer
from padpolicy.device import autocast, pick_device
from padpolicy.diffusion.sampler import sample
from padpolicy.encoders.depth import DepthScale
from padpolicy.encoders.image import ImageEncoder
from padpolicy.encoders.text import TextEncoder
from padpolicy.policy import PadPolicy
from padpolicy.provenance import commit
from padpolicy.sample import Sample
from padpolicy.saving import load_policy
from padpolicy.shipped import shipped
from padpolicy.spec import PolicyConfig, PolicySpec
from padpolicy.training.loop import make_optimizer

INSTRUCTIONS = ("touch the red cube", "put the green cube in the tray", "open the drawer", "stack the red cube on blue")
LATENCY_PLANS = 8  # plans per repeat whose stages are timed

Job = Callable[[], Any]


@dataclass
class Row:
    """One comparison. `ratio` is how many times as fast ours is."""

    name: str
    unit: str
    ours: float
    other: float
    ratio: float


def bench(cfg: BenchConfig, progress: Callable[[int, str], None] = lambda done, words: None) -> dict[str, Any]:
    """Runs all measurements. Returns what the JSON file holds, and writes it if `cfg.out` is set.

    Args:  progress: is called with (measurements done of 5, which one comes).
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = torch.device(pick_device(cfg.device))
    recipe = config.load("train", [f"experiment={cfg.recipe}", "out=unused", "data.path=unused"])
    policy, about = acting_policy(cfg, recipe, device)
    if missing := {"policy", "joint"} - set(policy.network.modes):
        raise ConfigError(
            f"{about}: bench compares plans with and without the future, and model.family={policy.config.model.family} "
            f"has no mode {missing.pop()!r}. `padpolicy bench latency checkpoint=… steps=[0]` times its plans."
        )
    clock = make_clock(device)
    measurements: list[tuple[str, Callable[[], Row | dict]]] = [
        ("acting without imagining", lambda: acting(policy, clock, cfg.repeats)),
        ("context kept", lambda: keeping_the_context(policy, clock, cfg.repeats)),
        ("environment", lambda: environment(recipe, cfg)),
        ("training", lambda: training(recipe, cfg, device, clock)),
        ("latency by stage", lambda: latency(policy, cfg.repeats * LATENCY_PLANS)),
    ]
    found = []
    for i, (name, measure) in enumerate(measurements):
        progress(i, name)
        found.append(measure())
    progress(len(measurements), "")
    results = {
        "rows": [asdict(row) for row in found[:-1]],
        "latency_ms": found[-1],
        "policy": about,
        **machine(device, clock),
        "repeats": cfg.repeats,
    }
    if cfg.out:
        Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
        Path(cfg.out).write_text(json.dumps(results, indent=1) + "\n")
    return results


# ------------------------------------------------------------------------------------------------- what is timed


def acting(policy: PadPolicy, clock: Job, repeats: int) -> Row:
    """A plan alone against a plan with its imagined future."""
    obs = random_batch(policy, 1, targets=False)
    ours, other = take_turns(
        [lambda: policy.predict(obs, mode="policy"), lambda: policy.predict(obs, mode="joint")], repeats, clock
    )
    return Row("plan: actions only / with the future", "ms", 1e3 * ours, 1e3 * other, other / ours)


def keeping_the_context(policy: PadPolicy, clock: Job, repeats: int) -> Row:
    """Denoising with the context's keys and values kept against computing them anew in every step."""
    observed = policy.fields.observed(random_batch(policy, 1, targets=False).to(policy.device))
    time_s = policy._times(1)
    noise = {"action": torch.randn(1, policy.spec.chunk_steps, policy.spec.action_dim, device=policy.device)}
    network = policy.network

    @torch.no_grad()
    def plan(keep: bool) -> None:
        kept = network.context(observed) if keep else None

        def denoise(x: dict[str, torch.Tensor], tau: float) -> dict[str, torch.Tensor]:
            context = kept or network.context(observed)
            return network.denoise("policy", context, x, {"action": torch.tensor([tau], device=policy.device)}, time_s)

        sample(policy.objective, denoise, noise, policy.config.diffusion.steps)

    ours, other = take_turns([lambda: plan(True), lambda: plan(False)], repeats, clock)
    return Row("denoising: context kept / recomputed", "ms", 1e3 * ours, 1e3 * other, other / ours)


def environment(recipe: TrainConfig, cfg: BenchConfig) -> Row:
    """One core, RGB and depth: one camera against two."""
    names, size = recipe.env.cameras, recipe.data.image_size
    cameras = [names[:1], names[:2]]
    one, two = step_rates(recipe.env.id, recipe.env.renderer, cameras, size, cfg.env_steps, cfg.repeats)
    return Row("environment, RGB-D: 1 camera / 2", "steps/s", one, two, one / two)


def training(recipe: TrainConfig, cfg: BenchConfig, device: torch.device, clock: Job) -> Row:
    """Our training step (draws, loss, gradients, AdamW) in mode joint against that of a bare DiT of the same size."""
    n = cfg.batch_size or recipe.training.batch_size
    model = dataclasses.replace(recipe.model, eyes="latents", recompute=False)
    diffusion = dataclasses.replace(recipe.diffusion, modes={"joint": 1.0})
    recipe = dataclasses.replace(recipe, model=model, diffusion=diffusion)
    policy = untrained_policy(recipe, device).train()
    batch = random_batch(policy, n, targets=True).to(device)
    optimizer = make_optimizer(policy, recipe)

    def ours() -> None:
        batch.step += 1  # other draws each time
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, recipe.training.precision):
            loss = policy.loss(batch).total()
        loss.backward()
        optimizer.step()

    size, actions = measured_size(policy, batch)
    other = BareTraining(size, actions, device, recipe.training.precision == "bf16")
    a, b = take_turns([ours, other], cfg.repeats, clock)
    name = f"training: ours / bare DiT {size.depth}x{size.width}, {size.context}+{size.noised} tokens"
    return Row(name, "samples/s", n / a, n / b, b / a)


def latency(policy: PadPolicy, plans: int) -> dict[str, dict[str, float]]:
    """Wall milliseconds of one plan by stage: median and 95th percentile."""
    obs = random_batch(policy, 1, targets=False)
    steps = policy.config.diffusion.steps
    stages: dict[str, list[float]] = {"encode": [], "context": [], "one step": [], "post": [], "total": []}
    policy.predict(obs)
    for _ in range(plans):
        took = policy.predict(obs).timings_ms
        stages["encode"].append(took["encode"])
        stages["context"].append(took["context"])
        stages["one step"].append(took["denoise"] / steps)
        stages["post"].append(took["total"] - took["encode"] - took["context"] - took["denoise"])
        stages["total"].append(took["total"])
    return {
        name: {"p50": float(np.percentile(values, 50)), "p95": float(np.percentile(values, 95))}
        for name, values in stages.items()
    }


# ---------------------------------------------------------------------------------------------------- the means


def take_turns(jobs: list[Job], repeats: int, clock: Job) -> list[float]:
    """Median seconds of each job. All run once before, unmeasured, then in turn `repeats` times."""
    seconds: list[list[float]] = [[] for _ in jobs]
    for job in jobs:
        job()
    for _ in range(repeats):
        for job, mine in zip(jobs, seconds, strict=True):
            started = clock()
            job()
            mine.append(clock() - started)
    return [median(mine) for mine in seconds]


def make_clock(device: torch.device) -> Callable[[], float]:
    """Seconds: CPU time where one thread does all the work, else wall time after the device has finished."""
    if device.type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    synchronise = torch.get_device_module(device).synchronize

    def clock() -> float:
        synchronise()
        return time.perf_counter()

    return clock


def acting_policy(cfg: BenchConfig, recipe: TrainConfig, device: torch.device) -> tuple[PadPolicy, str]:
    """The policy whose acting is timed, and what it is."""
    if cfg.checkpoint:
        return load_policy(cfg.checkpoint, device), cfg.checkpoint
    try:
        return load_policy(shipped(f"data/weights/{cfg.recipe}"), device), f"shipped: {cfg.recipe}"
    except FileNotFoundError:
        return untrained_policy(recipe, device).eval(), f"untrained network of experiment={cfg.recipe}"


def untrained_policy(recipe: TrainConfig, device: torch.device) -> PadPolicy:
    """A network of a recipe's size for its environment's robot, without data: statistics are those of nothing.

    Raises:  ConfigError for a recipe whose environment says nothing about its actions.
    """
    if recipe.env.id not in ENVS:
        raise ConfigError(f"experiment={recipe.name}: bench knows no robot of {recipe.env.id!r}; of {', '.join(ENVS)}.")
    known, data = ENVS[recipe.env.id], recipe.data
    numbers = {"action": len(known.action.names), "proprio": len(known.proprio["names"])}
    spec = PolicySpec(
        cameras=data.cameras,
        depth_cameras=data.depth_cameras,
        future_cameras=data.future_cameras,
        future_depth_cameras=data.future_depth_cameras,
        image_size=data.image_size,
        obs_steps=data.obs_steps,
        chunk_steps=data.chunk_steps,
        dt_s=data.dt_s,
        future_offsets_s=data.future_offsets_s,
        action_dim=numbers["action"],
        proprio_dim=numbers["proprio"],
        action=asdict(known.action),
        robot=recipe.env.robot,
        renderer=recipe.env.renderer,
    )
    stats = {recipe.env.robot: {name: {"center": [0.0] * n, "scale": [1.0] * n} for name, n in numbers.items()}}
    policy = PadPolicy(
        PolicyConfig(spec, recipe.model, recipe.diffusion, recipe.encoders),
        Normalizer(stats),
        DepthScale(700.0, 100.0),
        ImageEncoder.load(recipe.encoders.image, device),
        TextEncoder.load(recipe.encoders.text, device),
    )
    return policy.to(device)


def random_batch(policy: PadPolicy, n: int, targets: bool) -> Batch:
    """Random contents for every field: an observation as it comes from cameras, or with `targets` prepared latents."""
    spec, encoder, rng = policy.spec, policy.image_encoder, np.random.default_rng(0)
    side, small = spec.image_size, spec.image_size // encoder.downsample

    def rgb(axis: str, camera: str, frames: int) -> tuple[str, np.ndarray]:
        if targets:
            latent = rng.standard_normal((frames, encoder.channels, small, small))
            return f"{axis}.latent_{camera}", latent.astype(np.float16)
        return f"{axis}.rgb_{camera}", rng.integers(0, 256, (frames, side, side, 3)).astype(np.uint8)

    def depth(axis: str, camera: str, frames: int) -> tuple[str, np.ndarray]:
        return f"{axis}.depth_{camera}", rng.integers(400, 1000, (frames, side, side)).astype(np.uint16)

    samples = []
    for i in range(n):
        now, then = spec.obs_steps, len(spec.future_offsets_s)
        fields = dict([rgb("obs", camera, now) for camera in spec.cameras])
        fields |= dict([depth("obs", camera, now) for camera in spec.depth_cameras])
        fields["obs.proprio"] = rng.standard_normal((now, spec.proprio_dim)).astype(np.float32)
        time_s = {"obs": spec.dt_s * np.arange(1 - now, 1)}
        if targets:
            fields |= dict([rgb("future", camera, then) for camera in spec.future_cameras])
            fields |= dict([depth("future", camera, then) for camera in spec.future_depth_cameras])
            fields["action"] = rng.standard_normal((spec.chunk_steps, spec.action_dim)).astype(np.float32)
            time_s |= {"future": np.array(spec.future_offsets_s), "action": spec.dt_s * np.arange(spec.chunk_steps)}
        is_pad = {axis: np.zeros(len(times), bool) for axis, times in time_s.items()}
        samples.append(Sample(fields, is_pad, time_s, INSTRUCTIONS[i % len(INSTRUCTIONS)], spec.robot, i))
    return collate(samples)


@torch.no_grad()
def measured_size(policy: PadPolicy, batch: Batch) -> tuple[Size, int]:
    """The size of the sequences that `batch` becomes in mode joint, and how many of the noised tokens are actions."""
    model, latents = policy.config.model, policy.noise_shapes("joint")
    noised = 0
    for name, (frames, *rest) in latents.items():
        if name == "action":
            noised += frames
        else:
            patch = model.depth_patch if ".depth_" in name else model.patch
            noised += frames * (rest[-1] // patch) * (rest[-2] // patch)
    context = policy.network.context(policy.fields.observed(batch)).cache.keys[0].shape[2]
    size = Size(len(batch), context, noised, model.width, model.depth, model.heads, model.mlp_ratio)
    return size, policy.spec.chunk_steps


def machine(device: torch.device, clock: Callable[[], float]) -> dict[str, Any]:
    """What was measured with: every report of a time says so."""
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "clock": "CPU time" if clock is time.process_time else "wall time",
    }


def cpu_name() -> str:
    """What the processor calls itself."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
