"""From noise to data: one loop over noise times, one step function per objective.

`denoise(x, tau) -> out` is any callable from dicts of fields to dicts of predictions; a test can hand in one with a
known answer. A flow step has no data-dependent control flow, so that it can be captured whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

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
    generator: torch.Generator | None = None,
) -> Fields:
    """Integrates all fields from pure noise to data together.

    Args:  noise: the fields that are denoised, standard normal.   steps: network calls, at least 1.
    Raises:  ValueError if steps < 1, or if they do not divide the objective's train_steps (ddpm).
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected 1 or more")
    if objective.kind == "ddpm" and objective.train_steps % steps:
        # diffusers' DDIM walks back by train_steps // steps and would stop short of clean data
        raise ValueError(f"steps={steps} does not divide the {objective.train_steps} steps of the ddpm schedule")
    x = after(dict(noise), 1.0)
    if objective.kind == "flow":
        for i in range(steps):
            tau, tau_next = 1 - i / steps, 1 - (i + 1) / steps
            out = denoise(x, tau)
            velocity = {field: objective.velocity(field, out[field], x[field], tau) for field in x}
            x = after({field: euler(x[field], velocity[field], tau, tau_next) for field in x}, tau_next)
        return x
    schedulers = {field: _scheduler(objective, steps) for field in x}
    times = next(iter(schedulers.values())).timesteps.tolist()
    for i, k in enumerate(times):
        out = denoise(x, (k + 1) / objective.train_steps)
        stepped = {}
        for field in x:
            answer = out[field]
            if objective.learn_variance:
                answer = split_variance(answer, x[field], channel_axis(field))[0]
            stepped[field] = schedulers[field].step(answer, k, x[field], generator=generator).prev_sample
        x = after(stepped, (times[i + 1] + 1) / objective.train_steps if i + 1 < len(times) else 0.0)
    return x


def _scheduler(objective: Objective, steps: int):
    """diffusers' DDIM stepper over our schedule; one per field and call, because schedulers carry state."""
    from diffusers import DDIMScheduler

    from padpolicy.diffusion.path import alphas_cumprod

    abar = torch.as_tensor(alphas_cumprod(objective.train_steps))
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]])
    scheduler = DDIMScheduler(
        num_train_timesteps=objective.train_steps,
        trained_betas=betas.float().numpy(),
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",  # starts at k = K - 1: pure noise is where the sampler begins
    )
    scheduler.set_timesteps(steps)
    return scheduler
