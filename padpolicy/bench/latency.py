"""One plan stage by stage, ours and under PAD's settings on the same trunk, which take turns in one run.

    encode | context | step | step | … | post        ours: the context once a plan, no future in the sequence
    encode | context and step | … | post             PAD's: mode `joint`, many steps, the context anew in each

Stages are told apart from outside, by watching the two calls of the network; together they are the whole plan. The
clock is that of `padpolicy bench`: CPU time on one thread of a CPU, else wall time after the device has finished.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from padpolicy import config
from padpolicy.batch import Batch
from padpolicy.bench.run import acting_policy, machine, make_clock, random_batch, take_turns, untrained_policy
from padpolicy.config import BenchConfig, TrainConfig
from padpolicy.device import pick_device
from padpolicy.model.network import Denoiser
from padpolicy.policy import PadPolicy

QUANTILES = (50, 95, 99)
COPIED_BYTES = 2**30  # by the copy that the bandwidth is measured with: far more than any cache holds

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Setting:
    """A way to plan.   keep: the context is computed once a plan, else anew in every step."""

    name: str
    mode: str
    steps: int
    keep: bool = True


@dataclass
class Stages:
    """Milliseconds of each plan, and of each of its denoising steps. Without `keep` the context is part of a step."""

    encode: list[float] = field(default_factory=list)
    context: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    post: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)  # of the whole plan, whatever the clock

    def summary(self) -> dict[str, dict[str, float]]:
        """stage -> {"p50", "p95", "p99"} in milliseconds."""
        return {
            name: {f"p{q}": float(np.percentile(values, q)) for q in QUANTILES} for name, values in vars(self).items()
        }


def latency(cfg: BenchConfig, progress: Callable[[int, str], None] = lambda done, words: None) -> dict[str, Any]:
    """Times `cfg.plans` plans of each setting. Returns what the JSON file holds, and writes it if `cfg.out` is set.

    Args:  progress: is called with (rounds done of `cfg.plans`, in words).
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = torch.device(pick_device(cfg.device))
    recipe = config.load("train", [f"experiment={cfg.recipe}", "out=unused", "data.path=unused"])
    if cfg.trunk:
        policy, about = trunk_policy(cfg.trunk, cfg.image_size, recipe, device)
    else:
        policy, about = acting_policy(cfg, recipe, device)
    settings = settings_of(cfg, policy)
    obs, clock = random_batch(policy, 1, targets=False), make_clock(device)
    read = {setting: weights_read(policy, obs, setting) for setting in settings}
    policy.prepare(cfg.compile)
    warm = 3 if cfg.compile or device.type != "cpu" else 1
    found = time_plans(policy, obs, settings, cfg.plans, warm, clock, cfg.seed, progress)

    bandwidth = copy_bandwidth(device, COPIED_BYTES, clock) if device.type != "cpu" else None
    rows = []
    for setting, stages in found.items():
        row = dataclasses.asdict(setting) | {"ms": stages.summary(), "weights_read_bytes": read[setting]}
        if bandwidth:
            row["floor_ms"] = 1e3 * read[setting] / bandwidth
            network = row["ms"]["total"]["p50"] - row["ms"]["encode"]["p50"] - row["ms"]["post"]["p50"]
            row["times_floor"] = network / row["floor_ms"]
        if not settings[-1].keep:
            row["times_as_fast_as_pad"] = float(np.median(found[settings[-1]].total) / np.median(stages.total))
        rows.append(row)
    results = {"settings": rows, "policy": about, "plans": cfg.plans, "seed": cfg.seed, "compile": cfg.compile}
    results |= {"bandwidth_bytes_per_s": bandwidth, **machine(device, clock)}
    if cfg.out:
        Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
        Path(cfg.out).write_text(json.dumps(results, indent=1) + "\n")
    return results


def settings_of(cfg: BenchConfig, policy: PadPolicy) -> list[Setting]:
    """The policy's at each number of steps, then PAD's unless `pad_steps` is 0 or it has no mode `joint`."""
    family = policy.config.model.family
    whose = "ours" if family == "padpolicy" else family
    counts = [steps or policy.config.diffusion.steps for steps in cfg.steps]
    names = {steps: f"{whose}, {steps} step{'s' * (steps > 1)}" for steps in counts}
    ours = [Setting(name, policy.acts_in, steps) for steps, name in names.items()]
    pad = Setting(f"PAD's settings, {cfg.pad_steps} steps", "joint", cfg.pad_steps, keep=False)
    return [*ours, pad] if cfg.pad_steps and "joint" in policy.network.modes else ours


def time_plans(
    policy: PadPolicy,
    obs: Batch,
    settings: list[Setting],
    plans: int,
    warm: int,
    clock: Clock,
    seed: int = 0,
    progress: Callable[[int, str], None] = lambda done, words: None,
) -> dict[Setting, Stages]:
    """`warm` rounds unmeasured, then `plans` rounds; in each round every setting plans once."""
    generator = torch.Generator(policy.device).manual_seed(seed)
    found = {setting: Stages() for setting in settings}
    for i in range(-warm, plans):
        progress(max(i, 0), "warming up" if i < 0 else "plans")
        for setting, stages in found.items():
            with watched(policy.network, setting.keep, clock) as marks:
                started = clock()
                prediction = policy.predict(obs, mode=setting.mode, steps=setting.steps, generator=generator)
                ended = clock()
            if i >= 0:
                took: dict[str, list[float]] = {"encode": [], "context": [], "step": [], "post": []}
                before = started
                for stage, now in [*marks, ("post", ended)]:
                    took[stage].append(1e3 * (now - before))
                    before = now
                stages.encode.append(sum(took["encode"]))  # two of each where one mode comes after another
                stages.context.append(sum(took["context"]))
                stages.step += took["step"]
                stages.post += took["post"]
                stages.total.append(1e3 * (ended - started))
                stages.wall.append(prediction.timings_ms["total"])
    progress(plans, "")
    return found


@contextmanager
def watched(network: Denoiser, keep: bool, clock: Clock) -> Iterator[list[tuple[str, float]]]:
    """What ended, and when: "encode" where the context is asked for, "context", and "step" for each denoising step.

    Args:  keep: else the context is computed anew in each step, as part of it.
    """
    marks: list[tuple[str, float]] = []
    context, denoise = network.context, network.denoise

    def watched_context(observed):
        marks.append(("encode", clock()))
        known = context(observed) if keep else observed
        marks.append(("context", clock()))
        return known

    def watched_denoise(mode, known, *rest):
        if not keep:
            torch.compiler.cudagraph_mark_step_begin()  # the last step's context is not needed again
        out = denoise(mode, known if keep else context(known), *rest)
        marks.append(("step", clock()))
        return out

    before = {name: vars(network)[name] for name in ("context", "denoise") if name in vars(network)}
    vars(network).update(context=watched_context, denoise=watched_denoise)
    try:
        yield marks
    finally:
        for name in ("context", "denoise"):
            del vars(network)[name]
        vars(network).update(before)


# ------------------------------------------------------------------------------------------------------- the floor


def weights_read(policy: PadPolicy, obs: Batch, setting: Setting) -> int:
    """Bytes of weights that the layers of the network read for one plan, each call of a layer all of its own.

    Counted on real calls, by hooks: call it before compiling.
    """
    read = 0

    def add(module: nn.Module, inputs: Any) -> None:
        nonlocal read
        read += sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))

    layers = [m for m in policy.network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles = [layer.register_forward_pre_hook(add) for layer in layers]
    totals = []
    for steps in (1, 2):
        read = 0
        with watched(policy.network, setting.keep, lambda: 0.0):
            policy.predict(obs, mode=setting.mode, steps=steps)
        totals.append(read)
    for handle in handles:
        handle.remove()
    return totals[0] + (setting.steps - 1) * (totals[1] - totals[0])


def copy_bandwidth(device: torch.device, size: int, clock: Clock) -> float:
    """Bytes per second of reading and writing memory together: `size` bytes are copied, the median of 10 times."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / take_turns([lambda: target.copy_(source)], 10, clock)[0]


# ------------------------------------------------------------------------------------------------------ the trunks


def trunk_policy(trunk: str, image_size: int, recipe: TrainConfig, device: torch.device) -> tuple[PadPolicy, str]:
    """An untrained policy with a trunk of DiT's size "S", "B", "L" or "XL", and what it is.

    One camera, whose latents are seen and imagined with patches of 2, and its depth as 32 x 32 pixels with patches of
    8: at 256 pixels 272 tokens of the present and 272 of the future, as many as PAD's.
    """
    width, depth, heads = config.dit_sizes()[trunk]
    one = {name: ["front"] for name in ("cameras", "depth_cameras", "future_cameras", "future_depth_cameras")}
    data = dataclasses.replace(recipe.data, **one, image_size=image_size, future_offsets_s=[0.6])
    model = config.ModelConfig(width=width, depth=depth, heads=heads, depth_size=32, depth_patch=8)
    policy = untrained_policy(dataclasses.replace(recipe, data=data, model=model), device).eval()
    return policy, f"untrained DiT-{trunk}/2, {depth} x {width}, {image_size} px"
