"""Trains the shipped text tower: instructions and what they bring about are pulled together, all others pushed apart.

A picture of an episode is (first front frame, last front frame, last wrist frame): what an instruction means is what it
changes. Every wording of an instruction is a positive of every episode that fulfils it and of its other wordings.
Held-out wordings and held-out tasks are never seen. MetaWorld's tasks take part under their names.
The command that made data/weights/text, after scripts/tabletop_frames.py and scripts/metaworld_frames.py:

    python scripts/train_text.py --frames frames --work runs/text --export data/weights/text

It resumes exactly if it is stopped. Only the text tower is shipped: an open_clip model with 3 layers of width 128.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import padpolicy_envs
import torch
import train_state
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F

from padpolicy import draws
from padpolicy.encoders.text import TextEncoder

EMBED = 128
MODEL_CFG = {
    "embed_dim": EMBED,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 32, "patch_size": 32, "image_size": 32},  # not used
    "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
}


class Pair(nn.Module):
    """open_clip's text tower beside a small convolutional picture tower, into one space."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = open_clip.CLIP(**MODEL_CFG)
        self.clip.visual = nn.Identity()
        layers: list[nn.Module] = []
        for narrow, wide in ((9, 32), (32, 64), (64, 96), (96, 128)):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.GroupNorm(8, wide), nn.SiLU()]
        self.picture = nn.Sequential(
            *layers, nn.Conv2d(128, 32, 1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32 * 36, EMBED)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def text(self, ids: Tensor) -> Tensor:
        """What `clip.encode_text` returns, normalised.

        The tower is causal, so the padding behind all texts is left out.
        """
        clip, end = self.clip, ids.argmax(1)  # the end of text has the largest id
        length = int(end.max()) + 1
        x = clip.token_embedding(ids[:, :length]) + clip.positional_embedding[:length]
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        return F.normalize(x[torch.arange(len(x)), end] @ clip.text_projection, dim=-1)

    def image(self, picture: Tensor) -> Tensor:
        return F.normalize(self.picture(picture), dim=-1)


def pictures(frames: Path, source: str, split: str, views: tuple[str, str]) -> tuple[np.ndarray, list[str]]:
    """Of each episode that fulfilled its instruction: uint8 (N, 9, H, W) and the task's name."""
    stored = np.load(frames / f"{source}_{split}.npy", mmap_mode="r")
    labels = json.loads((frames / f"{source}_{split}.json").read_text())
    rows: dict[tuple[str, int], dict[str, int]] = {}
    for i, label in enumerate(labels):
        moment = "first" if label["step"] == 0 else "last" if label["done"] else None
        if moment:
            rows.setdefault((label["task"], label["seed"]), {})[f"{moment} {label['view']}"] = i
    wanted = [f"first {views[0]}", f"last {views[0]}", f"last {views[1]}"]
    complete = [
        (task, [found[w] for w in wanted]) for (task, _), found in rows.items() if all(w in found for w in wanted)
    ]
    images = np.stack([np.concatenate([stored[i] for i in three], axis=-1) for _, three in complete])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), [task for task, _ in complete]


def metaworld_sentence(task: str) -> str:
    return task.replace("-", " ")


def augment(images: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Float32 pictures in about [-1, 1], moved by up to four pixels and a little brighter or darker."""
    out = np.empty(images.shape, np.float32)
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)), mode="edge")
    size = images.shape[-1]
    for i, image in enumerate(padded):
        y, x = rng.integers(9, size=2)
        out[i] = (image[:, y : y + size, x : x + size] / 127.5 - 1) * rng.uniform(0.85, 1.15)
    return torch.from_numpy(out)


def multi_positive(similarity: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy of each row against its positives, evenly shared (supervised contrastive loss)."""
    share = positive.float() / positive.sum(1, keepdim=True).clamp_min(1)
    return -(share * similarity.log_softmax(1)).sum(1)[positive.any(1)].mean()


def loss(model: Pair, images: Tensor, task_of_image: Tensor, ids: Tensor, task_of_text: Tensor) -> Tensor:
    text, image, scale = model.text(ids), model.image(images), model.log_scale.exp().clamp(max=50)
    match = task_of_image[:, None] == task_of_text[None]
    logits = scale * image @ text.T
    itself = torch.eye(len(text), dtype=torch.bool)
    among_texts = (scale * text @ text.T).masked_fill(itself, -1e4)
    wordings = (task_of_text[:, None] == task_of_text[None]) & ~itself
    return (
        multi_positive(logits, match) + multi_positive(logits.T, match.T) + 0.5 * multi_positive(among_texts, wordings)
    )


def train(args: argparse.Namespace, model: Pair, tokenizer: open_clip.SimpleTokenizer) -> EMAModel:
    images, names, wordings = [], [], {}
    for source, views in (("tabletop", ("front", "wrist")), ("metaworld", ("corner4", "gripperPOV"))):
        if not (args.frames / f"{source}_train.npy").exists():
            continue
        found, tasks = pictures(args.frames, source, "train", views)
        images, names = [*images, *found], names + tasks
        for task in dict.fromkeys(tasks):
            known = padpolicy_envs.TASKS.get(task)
            wordings[task] = list(known.paraphrases) if known else [metaworld_sentence(task)]
    assert not any(task.held_out and name in wordings for name, task in padpolicy_envs.TASKS.items())
    images, order = np.stack(images), list(wordings)
    task_of_image = np.array([order.index(name) for name in names])
    ids = {task: tokenizer(wordings[task]) for task in order}
    print(f"{len(images)} pictures, {len(order)} tasks, {sum(map(len, wordings.values()))} wordings", flush=True)

    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    ema = EMAModel(model.parameters(), decay=0.99)
    first = train_state.restore(args.work, model, ema, [optimizer])
    began = time.monotonic()
    for step in range(first, args.steps):
        rng = draws.generator(args.seed, step, 0, "text")
        torch.manual_seed(int(rng.integers(2**31)))  # dropout
        warm, left = min(1.0, (step + 1) / 100), 0.5 * (1 + math.cos(math.pi * step / args.steps))
        optimizer.param_groups[0]["lr"] = args.lr * warm * left
        rows = rng.integers(len(images), size=args.batch)
        spoken = sorted({order[i] for i in task_of_image[rows]} | set(rng.choice(order, 24, replace=False)))
        texts = [(order.index(task), ids[task][k]) for task in spoken for k in rng.permutation(len(ids[task]))[:2]]
        batch = torch.stack([text for _, text in texts])
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(
                model,
                augment(images[rows], rng),
                torch.from_numpy(task_of_image[rows]),
                batch,
                torch.tensor([task for task, _ in texts]),
            )
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())
        if (step + 1) % 50 == 0:
            print(f"{step + 1}/{args.steps} {time.monotonic() - began:.0f} s  loss {value.item():.3f}", flush=True)
        if (step + 1) % args.checkpoint_every == 0 or step + 1 == args.steps:
            train_state.save(args.work, step + 1, model, ema, [optimizer])
    return ema


@torch.no_grad()
def report(frames: Path, model: Pair, encoder: TextEncoder) -> None:
    """Retrieval on unseen scenes by the shipped tower, and how near unseen wordings are to what they mean."""
    tasks = padpolicy_envs.TASKS
    canonical = F.normalize(encoder.encode([t.instruction for t in tasks.values()], 48).pooled, dim=-1)
    unseen = F.normalize(encoder.encode([t.held_out_paraphrase for t in tasks.values()], 48).pooled, dim=-1)
    training = torch.tensor([not t.held_out for t in tasks.values()])
    images, names = pictures(frames, "tabletop", "test", ("front", "wrist"))
    image = model.eval().image(torch.from_numpy(images.astype(np.float32) / 127.5 - 1))
    truth = torch.tensor([list(tasks).index(name) for name in names])
    hit = (image @ canonical.T).argmax(1) == truth
    for label, rows in (("training", training[truth]), ("held-out", ~training[truth])):
        found = hit[rows].float().mean()
        print(f"picture -> one of {len(tasks)} instructions, {label} tasks: {found:.0%} of {int(rows.sum())}")
    cosine = unseen @ canonical.T
    own, other = cosine.diagonal(), cosine.masked_fill(torch.eye(len(tasks), dtype=torch.bool), -1).amax(1)
    for label, rows in (("training", training), ("held-out", ~training)):
        near, far, best = own[rows].mean(), other[rows].mean(), (own > other)[rows].float().mean()
        print(
            f"unseen wording of {label} tasks: cosine {near:.3f} to its own instruction, {far:.3f} to the nearest "
            f"other; its own is the nearest for {best:.0%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, required=True, help="folder of the frame sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--export", type=Path, required=True, help="where the text tower goes")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = Pair()
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CFG["text_cfg"]["context_length"])
    ema = train(args, model, tokenizer)
    ema.copy_to(model.parameters())
    TextEncoder(model.clip, tokenizer, MODEL_CFG).save(args.export, quantise=True)
    encoder = TextEncoder.load(f"local-dir:{args.export}")
    size = sum(path.stat().st_size for path in args.export.iterdir())
    print(f"{args.export}: {size / 1e6:.2f} MB, fingerprint {encoder.fingerprint}")
    report(args.frames, model, encoder)


if __name__ == "__main__":
    main()
