"""The training loop: next batch, loss, backward, clip, step, average, and now and then log, validate, imagine, save.

Running the same command again resumes: every random draw is a function of (seed, step, sample index), so a run that was
killed and resumed ends with the weights of one that was not, bit for bit. It goes on under the settings and statistics
that it was begun with.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from padpolicy import config
from padpolicy.batch import Batch
from padpolicy.config import TrainConfig
from padpolicy.data.dataset import BatchStream, loader
from padpolicy.device import autocast, pick_device
from padpolicy.policy import PadPolicy
from padpolicy.released import is_released, start_from
from padpolicy.saving import load_fitting
from padpolicy.training import checkpoint
from padpolicy.training.augment import augment
from padpolicy.training.build import build_policy, open_data
from padpolicy.training.distributed import World, world
from padpolicy.training.ema import EMA, averaged
from padpolicy.training.log import Log

Progress = Callable[[int, dict[str, float]], None]


def train(cfg: TrainConfig, progress: Progress = lambda step, numbers: None) -> Path:
    """Trains until cfg.training.steps (or max_seconds), resuming if cfg.out has checkpoints. Returns the run directory.

    Args:  progress: called after every step with the numbers of the last log line.
    Raises:  ConfigError, StoreError, CheckpointError: what was expected, what came and what to do; ConfigError too if
             cfg.out was begun with other settings.
    Warns:   if the model has a glance that was not taught, or many windows have nothing to teach.
    """
    device = pick_device(cfg.training.device)
    if cfg.training.threads:
        torch.set_num_threads(cfg.training.threads)
    out = Path(cfg.out)
    begun = checkpoint.begun(out, cfg)
    with world(device) as here:
        torch.manual_seed(cfg.seed)  # the initial weights; nothing else draws from the global generator
        data = open_data(cfg, device, here)
        policy = build_policy(cfg, data, device, (begun.normalizer, begun.depth) if begun else None)
        begin = start_from if is_released(cfg.training.init) else load_fitting
        fresh = begin(policy, cfg.training.init) if cfg.training.init and not begun else []
        untaught = [k for k in (fresh if cfg.training.init else policy.state_dict()) if ".glance." in k]
        if untaught and not begun and here.leads:
            warnings.warn(
                "model.glance=true, and nothing has taught the glance: it will memorise the demonstrations. Run "
                "scripts/train_eye.py first and give its folder as training.init, or set model.glance=false.",
                stacklevel=2,
            )
        if not policy.learned("policy") and not begun and here.leads:
            lost = max(
                (source.without_future() for source in data.mixture.sources if not source.action_free), default=0
            )
            if lost > 0.05:
                warnings.warn(
                    f"{lost:.0%} of the windows end before the first imagined frame, and diffusion.modes has no "
                    "`policy`: they teach nothing. data.hold_future=true shows them the last frame.",
                    stacklevel=2,
                )
        here.share(policy.state_dict().values())
        optimizer = make_optimizer(policy, cfg)
        ema = EMA(policy, cfg.training.ema) if cfg.training.ema > 0 else None
        start = checkpoint.resume(out, policy, optimizer, ema)
        if here.leads:
            checkpoint.write_config(out, cfg)
        with Log(out, start) if here.leads else nullcontext() as log:
            if log and fresh:
                log.text("not initialised from training.init", "\n".join(fresh))
            run(cfg, policy, optimizer, ema, data, start, here, log, progress)
        del policy, optimizer, ema  # before the process group goes
    return out


def run(
    cfg: TrainConfig,
    policy: PadPolicy,
    optimizer: torch.optim.AdamW,
    ema: EMA | None,
    data: Any,
    start: int,
    here: World,
    log: Log | None,
    progress: Progress,
) -> None:
    """The loop itself, from optimiser step `start` on."""
    training, device = cfg.training, policy.device
    parameters = [p for p in policy.parameters() if p.requires_grad]
    batches = micro_batches(data.train, cfg, start, here)
    began, seen = time.monotonic(), 0
    numbers: dict[str, float] = {}
    policy.train()
    for step in range(start, training.steps):
        parts = [augment(part.to(device), cfg.augment) for part in next(batches)]
        if step == start and log:
            log.text("first batch", parts[0].describe())
        rate = learning_rate(cfg, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        terms = backward(policy, parts, training.precision, here)
        here.sum_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, training.clip_norm, foreach=True)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"step {step}: the gradient is {float(norm)}, losses {terms}. The last checkpoint is sound; "
                "run `padpolicy validate` on the data, or lower training.lr."
            )
        optimizer.step()
        done = step + 1
        if ema:
            ema.update(policy, done)
        seen += training.batch_size

        ended = done == training.steps
        if training.max_seconds:
            ended |= here.any(time.monotonic() - began > training.max_seconds, device)
        if log and training.log_every and (done % training.log_every == 0 or ended):
            speed = seen / (time.monotonic() - began)
            numbers = {**terms, "grad_norm": float(norm), "lr": rate, "samples_per_s": speed}
            log.numbers("train", done, numbers)
        progress(done, numbers or terms)
        evaluating = training.evaluate_every and done % training.evaluate_every == 0
        saving = training.checkpoint_every and done % training.checkpoint_every == 0
        if here.leads and (saving or evaluating or ended):  # what is evaluated is the newest checkpoint
            checkpoint.save(Path(cfg.out), done, policy, optimizer, ema, training.keep_checkpoints)
        if log and data.validation and training.validate_every and (done % training.validate_every == 0 or ended):
            log.numbers("validation", done, validate(policy, ema, data.validation, cfg, device))
        if log and data.validation and training.imagine_every and done % training.imagine_every == 0:
            log.imagined(done, policy, ema, data.validation[0])
        if log and evaluating:
            log.numbers("evaluation", done, _evaluate(cfg, done))
        if ended:
            break


def backward(policy: PadPolicy, parts: list[Batch], precision: str, here: World) -> dict[str, float]:
    """Gradients of the global batch's loss, from this process' parts of it. Returns the losses of the global batch.

    Each modality's sum is divided by its count of valid samples over all parts and processes, which is known before any
    network runs; so neither accumulation nor the number of processes changes the result.
    """
    counts: dict[str, float] = {}
    for part in parts:
        for name, count in policy.valid_counts(part).items():
            counts[name] = counts.get(name, 0.0) + float(count)
    counts = here.sum(counts, policy.device)
    sums = {name: 0.0 for name in counts}
    for part in parts:
        with autocast(policy.device, precision):
            terms = policy.loss(part)
            loss = terms.total(counts)
        if loss.requires_grad:
            loss.backward()
        for name, value in terms.value.items():
            sums[name] += float(value.detach().sum())
    sums = here.sum(sums, policy.device)
    losses = {f"loss_{name}": sums[name] / max(counts[name], 1.0) for name in sums}
    losses["loss"] = sum(terms.weight[name] * losses[f"loss_{name}"] for name in sums)
    return losses


@torch.no_grad()
def validate(
    policy: PadPolicy, ema: EMA | None, batches: list[Batch], cfg: TrainConfig, device: torch.device
) -> dict[str, float]:
    """The averaged weights' loss on held-out episodes, under the same draws every time, so that curves compare."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    with averaged(policy, ema), autocast(device, cfg.training.precision):
        for batch in batches:
            terms = policy.loss(batch)
            for name, value in terms.value.items():
                sums[name] = sums.get(name, 0.0) + float(value.sum())
                counts[name] = counts.get(name, 0.0) + float(terms.valid[name].sum())
    return {f"loss_{name}": sums[name] / counts[name] for name in sums if counts[name]}


def micro_batches(stream: BatchStream, cfg: TrainConfig, start: int, here: World):
    """This process' parts of every global batch from step `start` on, one list per step."""
    accumulate = cfg.training.accumulate
    for batch in loader(stream, start, cfg.training.steps, cfg.data.workers):
        rows = torch.arange(len(batch))
        yield [batch] if accumulate == 1 else [batch.select(part) for part in rows.chunk(accumulate)]


def make_optimizer(policy: nn.Module, cfg: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay acts on matrices only (biases, embeddings of single vectors and rows go free)."""
    matrices = [p for p in policy.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in policy.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": cfg.training.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (cfg.training.betas[0], cfg.training.betas[1])
    return torch.optim.AdamW(groups, lr=cfg.training.lr, betas=betas, foreach=True)


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to final_lr_fraction of the peak at the last step."""
    training = cfg.training
    if step < training.warmup_steps:
        return training.lr * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    low = training.final_lr_fraction
    return training.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def _evaluate(cfg: TrainConfig, step: int) -> dict[str, float]:
    """Closed-loop success of the newest checkpoint."""
    from padpolicy.evaluation import evaluate

    settings = config.evaluation_of(cfg, f"{cfg.out}/evaluation/step_{step:08d}")
    results = evaluate(settings)
    return {"success_rate": results["success_rate"]}
