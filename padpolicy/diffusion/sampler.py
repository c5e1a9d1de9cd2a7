"""From noise to data: one loop over noise times, one step function per sampler.

`denoise(x, tau) -> out` is any callable from dicts of fields to dicts of predictions; a test can hand in one with a
known answer. A flow step has no data-dependent control flow, so that it can be captured whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from padpolicy.config import SAMPLERS
from padpolicy.diffusion import path
from padpolicy.diffusion.objective import Objective, split_variance

Fields = dict[str, Tensor]
Denoise = Callable[[Fields, float], Fields]
AfterStep = Callable[[Fields, float], Fields]  # what must hold after a step, e.g. a known prefix of actions


def euler(x: Tensor, velocity: Tensor, tau: float, tau_next: float) -> Tensor:
    """One Euler step of dx/dtau = velocity."""
    return x + (tau_next - tau) * velocity


def sample(
    objective: Objective,
    denoise: Denoise,
    noise: Mapping[str, Tensor],
    steps: int,
    after: AfterStep = lambda x, tau: x,
    channel_axis: Callable[[str], int] = lambda field: -1,
    sampler: str = "auto",
    clip: Mapping[str, float] | None = None,
) -> Fields:
    """Integrates all fields from pure noise to data together.

    The same noise always gives the same data: what "ancestral" adds on the way is drawn by a generator of each row,
    which the row's own starting noise seeds.

    Args:  noise: the fields that are denoised, standard normal (B, ...).
           steps: of the sampler, at least 1, each one network call; "heun" makes two in all but the last.
           sampler: one of padpolicy.config.SAMPLERS[objective.kind]; "auto": the first of them.
           clip: field -> what the network says is clean of it is clipped to +- this (ddpm).
    Raises:  ValueError for a sampler that the objective does not have, and for a number of steps that it cannot take.
    """
    known = SAMPLERS[objective.kind]
    sampler = known[0] if sampler == "auto" else sampler
    if sampler not in known:
        raise ValueError(f"sampler={sampler!r}: objective={objective.kind} has {', '.join(map(repr, known))}")
    if steps < 1:
        raise ValueError(f"steps={steps}: expected 1 or more")
    if objective.kind == "flow":
        return _flow(objective, denoise, noise, steps, after, second_order=sampler == "heun")
    if sampler == "ancestral" and steps > objective.train_steps:
        raise ValueError(f"steps={steps} is more than the {objective.train_steps} steps of the ddpm schedule")
    if sampler != "ancestral" and objective.train_steps % steps:
        # diffusers' DDIM walks back by train_steps // steps and would stop short of clean data
        raise ValueError(f"steps={steps} does not divide the {objective.train_steps} steps of the ddpm schedule")
    return _ddpm(objective, denoise, noise, steps, after, channel_axis, sampler, clip or {})


def _flow(
    objective: Objective,
    denoise: Denoise,
    noise: Mapping[str, Tensor],
    steps: int,
    after: AfterStep,
    second_order: bool,
) -> Fields:
    def velocities(x: Fields, tau: float) -> Fields:
        out = denoise(x, tau)
        return {field: objective.velocity(field, out[field], x[field], tau) for field in x}

    x = after(dict(noise), 1.0)
    for i in range(steps):
        tau, tau_next = 1 - i / steps, 1 - (i + 1) / steps
        velocity = velocities(x, tau)
        there = after({field: euler(x[field], velocity[field], tau, tau_next) for field in x}, tau_next)
        if second_order and i + 1 < steps:  # what is clean has no velocity: the last step is Euler's
            beyond = velocities(there, tau_next)
            velocity = {field: 0.5 * (velocity[field] + beyond[field]) for field in x}
            there = after({field: euler(x[field], velocity[field], tau, tau_next) for field in x}, tau_next)
        x = there
    return x


def _ddpm(
    objective: Objective,
    denoise: Denoise,
    noise: Mapping[str, Tensor],
    steps: int,
    after: AfterStep,
    channel_axis: Callable[[str], int],
    sampler: str,
    clip: Mapping[str, float],
) -> Fields:
    x = after(dict(noise), 1.0)
    schedulers = {field: _scheduler(objective, sampler, steps) for field in x}
    draw = {
        field: {"generator": row_generators(field, z)} if sampler == "ancestral" else {} for field, z in noise.items()
    }
    times = next(iter(schedulers.values())).timesteps.tolist()
    for i, k in enumerate(times):
        tau = (k + 1) / objective.train_steps
        out = denoise(x, tau)
        stepped = {}
        for field in x:
            answer, v = out[field], None
            if objective.learn_variance:
                answer, v = split_variance(answer, x[field], channel_axis(field))
            clean = objective.clean(field, answer, x[field], torch.full((1,), tau, device=answer.device))
            if field in clip:
                clean = clean.clamp(-clip[field], clip[field])
            if sampler == "ancestral" and i + 1 == len(times):  # the last mean, which gets no noise
                stepped[field] = clean
                continue
            said = clean if sampler != "ancestral" or v is None else torch.cat([clean, v], 1)  # diffusers looks there
            stepped[field] = schedulers[field].step(said, k, x[field], **draw[field]).prev_sample
        x = after(stepped, (times[i + 1] + 1) / objective.train_steps if i + 1 < len(times) else 0.0)
    return x


def row_generators(field: str, noise: Tensor) -> list[torch.Generator]:
    """For each row of a field (B, ...) a generator on the CPU, seeded by the bits of its starting noise."""
    rows = noise.detach().cpu().contiguous().numpy()
    return [torch.Generator().manual_seed(zlib.crc32(row.tobytes(), zlib.crc32(field.encode()))) for row in rows]


def _scheduler(objective: Objective, sampler: str, steps: int) -> Any:
    """diffusers' stepper over our schedule, told what is clean; one per field and call, because they carry state.

    "ancestral" visits evenly spaced steps from K - 1 to 0, as DiT's released sampler; the others start at K - 1 and
    leave the last K / steps in one step.
    """
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    K = objective.train_steps
    shared = {"num_train_timesteps": K, "prediction_type": "sample", "timestep_spacing": "trailing"}
    scheduler: Any
    if sampler == "ancestral":
        width = "learned_range" if objective.learn_variance else "fixed_small"
        scheduler = DDPMScheduler(**shared, clip_sample=False, variance_type=width)
    elif sampler == "ddim":
        scheduler = DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=True)
    else:
        scheduler = DPMSolverMultistepScheduler(**shared, algorithm_type="dpmsolver++", solver_order=2)
    table = path.alphas_cumprod(K, objective.schedule, objective.shift)
    # DPM-Solver++ makes its sigmas of the table with numpy, which warns when it is given a tensor.
    scheduler.alphas_cumprod = table if sampler == "dpmsolver++" else torch.from_numpy(table)
    if sampler == "ancestral":
        scheduler.set_timesteps(timesteps=np.linspace(K - 1, 0, steps).round().astype(int).tolist())
    else:
        scheduler.set_timesteps(steps)
    return scheduler
