"""Trains the shipped VAE: a small diffusers AutoencoderKL, 96 pixels to 12, on tabletop and MetaWorld frames.

The commands that made data/weights/vae (frames: see scripts/tabletop_frames.py and scripts/metaworld_frames.py), about
25 minutes of one core; the first 1750 steps ran on a schedule of 4500:

    python scripts/train_vae.py --frames frames/tabletop frames/metaworld --share 0.6 0.4 --work runs/vae --steps 3200
    python scripts/train_vae.py --frames frames/tabletop frames/metaworld --work runs/vae --export data/weights/vae

The first resumes exactly if it is stopped: every draw is a function of (seed, step). The second writes the averaged
weights as fp16 in diffusers' layout, fits the latents' statistics on training frames and prints the reconstruction
error on test frames. `--frames NAME` means NAME_train.npy and NAME_test.npy, uint8 (N, H, W, 3).

The decoder alone can be trained further; latents, and the encoder's fingerprint, stay what they are:

    python scripts/train_vae.py --frames frames/tabletop frames/metaworld --decoder-of runs/vae --work runs/decoder \\
        --steps 5000 --lr 3e-3 --mae 0 --edges 0
    python scripts/train_vae.py --frames frames/tabletop frames/metaworld --work runs/decoder \\
        --export data/weights/vae --keep-stats
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import train_state
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from muon import Muon
from torch import Tensor

from padpolicy import draws


def make_vae(widths: list[int], channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=96,
    )


def crops(sources: list[np.ndarray], share: list[float], seed: int, step: int, batch: int, size: int) -> Tensor:
    """Random crops (batch, 3, size, size), float32 in [-1, 1]."""
    rng = draws.generator(seed, step, 0, "crops")
    out = np.empty((batch, size, size, 3), np.uint8)
    for row in range(batch):
        frames = sources[rng.choice(len(sources), p=share)]
        y, x = rng.integers(frames.shape[1] - size + 1), rng.integers(frames.shape[2] - size + 1)
        out[row] = frames[rng.integers(len(frames)), y : y + size, x : x + size]
    return to_network(out)


def to_network(frames: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    return (
        torch.from_numpy(np.require(frames, requirements=["C", "W"]))
        .movedim(-1, 1)
        .float()
        .div(127.5)
        .sub(1)
        .contiguous()
    )


def loss_terms(vae: AutoencoderKL, image: Tensor, seed: int, step: int) -> dict[str, Tensor]:
    """Per pixel and colour: squared error, absolute error, the same of horizontal and vertical differences, and KL."""
    with torch.autocast(image.device.type, torch.bfloat16):
        posterior = vae.encode(image).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        rows = torch.arange(len(image), device=image.device)
        noise = draws.normal(seed, step, rows, "posterior", mean.shape[1:])
        out = vae.decode(mean + (0.5 * logvar).exp() * noise).sample
    error = out.float() - image
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / image.numel()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return {"mse": error.square().mean(), "mae": error.abs().mean(), "edges": edges, "kl": kl}


def psnr(vae: AutoencoderKL, frames: np.ndarray) -> np.ndarray:
    """Decibels of each frame, decoded from the posterior's mean and rounded to uint8: float64 (N,)."""
    decibels = []
    device = next(vae.parameters()).device
    with torch.no_grad():
        for part in np.array_split(frames, math.ceil(len(frames) / 32)):
            out = vae.decode(vae.encode(to_network(part).to(device)).latent_dist.mean).sample
            out = ((out + 1) * 127.5).round().clamp(0, 255).movedim(1, -1).cpu().numpy().astype(np.float64)
            decibels.append(10 * np.log10(255**2 / ((out - part) ** 2).mean((1, 2, 3))))
    return np.concatenate(decibels)


def make_optimizers(vae: AutoencoderKL, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the inner convolutions, AdamW for the first, the last and everything that is not a matrix."""
    inner, others = [], []
    for name, p in vae.named_parameters():
        if p.requires_grad:
            (inner if p.ndim >= 2 and "conv_in" not in name and "conv_out" not in name else others).append(p)
    return [Muon(inner, lr), torch.optim.AdamW(others, 0.4 * lr, betas=(0.9, 0.98), weight_decay=0.0)]


def train(args: argparse.Namespace) -> None:
    args.work.mkdir(parents=True, exist_ok=True)
    sources = [np.load(f"{name}_train.npy", mmap_mode="r") for name in args.frames]
    tests = {Path(name).name: np.load(f"{name}_test.npy", mmap_mode="r") for name in args.frames}
    share = args.share or [1 / len(sources)] * len(sources)
    torch.manual_seed(args.seed)
    vae = make_vae(args.widths, args.channels).to(args.device)
    if args.decoder_of:
        vae.load_state_dict(train_state.averaged(args.decoder_of))
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    ema = EMAModel(vae.parameters(), decay=args.ema)
    optimizers = make_optimizers(vae, args.lr)
    full_lr = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first = train_state.restore(args.work, vae, ema, optimizers)
    began = time.monotonic()
    for step in range(first, args.steps):
        warm, left = min(1.0, (step + 1) / 100), 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for optimizer, lr in zip(optimizers, full_lr, strict=True):
            optimizer.param_groups[0]["lr"] = lr * warm * (0.01 + 0.99 * left)
        terms = loss_terms(
            vae, crops(sources, share, args.seed, step, args.batch, args.crop).to(args.device), args.seed, step
        )
        loss = terms["mse"] + args.mae * terms["mae"] + args.edges * terms["edges"] + args.kl * terms["kl"]
        vae.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        ema.step(vae.parameters())
        done = step + 1
        if done % 50 == 0:
            values = " ".join(f"{name} {value.item():.5f}" for name, value in terms.items())
            print(f"{done}/{args.steps} {time.monotonic() - began:.0f} s  {values}", flush=True)
        if done % args.checkpoint_every == 0 or done == args.steps:
            about = {"widths": args.widths, "channels": args.channels}
            train_state.save(args.work, done, vae, ema, optimizers, **about)
            ema.store(vae.parameters())
            ema.copy_to(vae.parameters())
            found = {
                name: round(float(psnr(vae, frames[:: max(1, len(frames) // 64)]).mean()), 2)
                for name, frames in tests.items()
            }
            ema.restore(vae.parameters())
            print(f"{done}: averaged weights, test PSNR {found}", flush=True)


def export(args: argparse.Namespace) -> None:
    from padpolicy.encoders.image import ImageEncoder, fit_latent_stats

    about = train_state.progress(args.work)
    vae = make_vae(about["widths"], about["channels"])
    vae.load_state_dict(train_state.averaged(args.work))
    vae.half().save_pretrained(args.export)
    vae.float()
    if not args.keep_stats:
        parts = [np.load(f"{name}_train.npy", mmap_mode="r") for name in args.frames]
        stats = fit_latent_stats(vae, np.concatenate([part[:: max(1, len(part) // 1000)] for part in parts]))
        (args.export / "latent_stats.json").write_text(json.dumps(stats, indent=1) + "\n")
    encoder = ImageEncoder.load(str(args.export), "cpu")
    print(f"fingerprint {encoder.fingerprint}, step {about['step']}")
    for name in args.frames:
        frames = np.load(f"{name}_test.npy", mmap_mode="r")
        rows = np.linspace(0, len(frames) - 1, min(len(frames), args.test_frames)).round().astype(int)
        views = np.array([label["view"] for label in json.loads(Path(f"{name}_test.json").read_text())])[rows]
        decibels = psnr(encoder.vae.to(memory_format=torch.contiguous_format), frames[rows])
        pooled = -10 * np.log10(np.mean(10 ** (-decibels / 10)))
        print(
            f"{name}: {len(rows)} test frames, PSNR {decibels.mean():.2f} dB on average, {pooled:.2f} dB of all pixels"
        )
        for view in np.unique(views):
            print(f"    {view}: {decibels[views == view].mean():.2f} dB")
    image = np.load(f"{args.frames[0]}_test.npy", mmap_mode="r")[:16]
    for n in (1, 16):
        encoder.encode(image[:n])
        began = time.perf_counter()
        for _ in range(5):
            encoder.encode(image[:n])
        print(f"encode, batch {n}: {(time.perf_counter() - began) / 5 / n * 1000:.1f} ms per frame")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", nargs="+", required=True, help="frame sets: path without _train.npy")
    parser.add_argument("--share", nargs="+", type=float, help="share of each frame set in a batch; equal without it")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--export", type=Path, help="write the averaged weights of --work here instead of training")
    parser.add_argument("--decoder-of", type=Path, help="start from this --work folder's weights and keep its encoder")
    parser.add_argument("--keep-stats", action="store_true", help="--export leaves the folder's statistics as they are")
    parser.add_argument("--test-frames", type=int, default=400, help="of each set, for the report of --export")
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 32, 64, 64], help="channels per resolution")
    parser.add_argument("--channels", type=int, default=16, help="latent channels")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=64, help="pixels a side of training crops")
    parser.add_argument("--lr", type=float, default=4e-3, help="of Muon; AdamW's is 0.4 of it")
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--mae", type=float, default=0.02, help="weight of the absolute error")
    parser.add_argument("--edges", type=float, default=0.02, help="weight of the error of differences: sharp edges")
    parser.add_argument("--kl", type=float, default=5e-4, help="weight of the divergence from a unit normal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=250)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    export(args) if args.export else train(args)


if __name__ == "__main__":
    main()
