"""PAD's forward pass as its description says it, as plainly as possible. Shares no code with padpolicy.

Letters: B batch, N tokens, D width, k future frames and poses, A action dims, s side of a square.
"""

from __future__ import annotations

import math
from argparse import Namespace

import torch

MODEL = {"width": 32, "heads": 4, "patch": 2, "blocks": 2, "side": 8, "channels": 4, "text": 8}


def arguments(depth: bool = True, one_token: bool = True, mask: bool = True) -> Namespace:
    """What a released checkpoint says of itself, of a network small enough to compute in loops."""
    return Namespace(
        model="DiT-tiny/2",
        num_heads=MODEL["heads"],
        image_size=8 * MODEL["side"],
        predict_horizon=3,
        action_steps=3,
        action_dim=4,
        action_condition=one_token,
        use_depth=depth,
        d_patch_size=4,
        d_hidden_size=8,
        attn_mask=mask,
        text_cond=True,
        learnable_action_pos=False,
        action_scale=10.0,
        absolute_action=True,
        skip_step=4,
        dynamics=True,
    )


def random_weights(args: Namespace, seed: int = 0) -> dict[str, torch.Tensor]:
    """A released state dict with random numbers. Positions are what they always are."""
    torch.manual_seed(seed)
    D, p, c, k, A = MODEL["width"], MODEL["patch"], MODEL["channels"], args.predict_horizon, args.action_dim
    shapes = {
        "x_embedder.proj": (D, (k + 1) * c, p, p),
        "t_embedder.mlp.0": (D, 256),
        "t_embedder.mlp.2": (D, D),
        "y_embedder.embedding_table": (D, MODEL["text"]),
        "a_embedder": (D, (k + 1) * A if args.action_condition else A),
        "final_layer.linear": (p * p * 2 * k * c, D),
        "final_layer.adaLN_modulation.1": (2 * D, D),
        "final_layer.a_linear": (2 * k * A if args.action_condition else 2 * A, D),
        "final_layer.a_adaLN_modulation.1": (2 * D, D),
    }
    if args.use_depth:
        shapes["d_embedder.proj"] = (D, k + 1, args.d_patch_size, args.d_patch_size)
        shapes["final_layer.d_linear"] = (args.d_patch_size**2 * 2 * k, D)
        shapes["final_layer.d_adaLN_modulation.1"] = (2 * D, D)
    for i in range(MODEL["blocks"]):
        shapes[f"blocks.{i}.attn.qkv"] = (3 * D, D)
        shapes[f"blocks.{i}.attn.proj"] = (D, D)
        shapes[f"blocks.{i}.mlp.fc1"] = (4 * D, D)
        shapes[f"blocks.{i}.mlp.fc2"] = (D, 4 * D)
        shapes[f"blocks.{i}.adaLN_modulation.1"] = (6 * D, D)
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = 0.1 * torch.randn(shape)
        weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0])
    cells = MODEL["side"] // p
    weights["pos_embed"] = square(cells, 1, D)[None]
    weights["a_pos_embed"] = torch.stack([line(i, D) for i in range(1 if args.action_condition else k)])[None]
    if args.use_depth:
        weights["d_pos_embed"] = square(args.d_hidden_size // args.d_patch_size, args.d_patch_size // p, D)[None]
    return weights


def line(x: float, width: int) -> torch.Tensor:
    half = width // 2
    angles = [x / 10000 ** (i / half) for i in range(half)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def square(cells: int, ratio: int, width: int) -> torch.Tensor:
    """Row after row; the first half says the column, the second the row."""
    places = []
    for row in range(cells):
        for column in range(cells):
            places.append(torch.cat([line(column * ratio, width // 2), line(row * ratio, width // 2)]))
    return torch.stack(places)


def time_features(t: torch.Tensor) -> torch.Tensor:
    rows = []
    for step in t.tolist():
        angles = [step * math.exp(-math.log(10000) * i / 128) for i in range(128)]
        rows.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    return torch.tensor(rows)


def stack(noised: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    return torch.cat([noised, now], 1)


def patches(x: torch.Tensor, p: int) -> torch.Tensor:
    """(B, c, s, s) -> (B, N, c p p), in the order of a convolution's weights."""
    s = x.shape[-1]
    cut = [x[:, :, i : i + p, j : j + p].flatten(1) for i in range(0, s, p) for j in range(0, s, p)]
    return torch.stack(cut, 1)


def unpatchify(tokens: torch.Tensor, p: int, c: int) -> torch.Tensor:
    cells = int(math.sqrt(tokens.shape[1]))
    picture = torch.zeros(len(tokens), c, cells * p, cells * p)
    for n in range(cells * cells):
        top, left = n // cells * p, n % cells * p
        for i in range(p):
            for j in range(p):
                start = (i * p + j) * c
                picture[:, :, top + i, left + j] = tokens[:, n, start : start + c]
    return picture


def linear(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}.weight"].flatten(1).T + w[f"{name}.bias"]


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(x: torch.Tensor) -> torch.Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-6)


def attention(w: dict, name: str, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """hidden (N, N): True where a row must not see a column."""
    D, heads = x.shape[-1], MODEL["heads"]
    e = D // heads
    qkv, out = linear(w, f"{name}.qkv", x), []
    for h in range(heads):
        q, key, v = (qkv[..., part * D + h * e : part * D + (h + 1) * e] for part in range(3))
        scores = q @ key.transpose(1, 2) / math.sqrt(e)
        scores[:, hidden] = -math.inf
        out.append(torch.softmax(scores, -1) @ v)
    return linear(w, f"{name}.proj", torch.cat(out, -1))


def forward(
    w: dict,
    args: Namespace,
    t: torch.Tensor,
    text: torch.Tensor,
    rgb: torch.Tensor,
    rgb_now: torch.Tensor,
    action: torch.Tensor,
    pose_now: torch.Tensor,
    depth: torch.Tensor,
    depth_now: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """rgb (B, k c, s, s), action (B, k, A) and depth (B, k, s, s) are noised; what is now is not.

    Returns: (B, 2 k c, s, s), (B, 1, 2 k A) or (B, k, 2 A), and (B, 2 k, s, s): noise, then variance.
    """
    p, k, D = MODEL["patch"], args.predict_horizon, MODEL["width"]
    x = linear(w, "x_embedder.proj", patches(stack(rgb, rgb_now), p)) + square(MODEL["side"] // p, 1, D)
    n_rgb = x.shape[1]
    pose = action
    if args.action_condition:
        pose = stack(action.flatten(1), pose_now)[:, None]
    n_pose = pose.shape[1]
    x = torch.cat([x, linear(w, "a_embedder", pose) + torch.stack([line(i, D) for i in range(n_pose)])], 1)
    if args.use_depth:
        cells, ratio = args.d_hidden_size // args.d_patch_size, args.d_patch_size // p
        d = linear(w, "d_embedder.proj", patches(stack(depth, depth_now), args.d_patch_size))
        x = torch.cat([x, d + square(cells, ratio, D)], 1)
    hidden = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
    if args.attn_mask:
        hidden[:n_rgb, n_rgb:] = True

    c = linear(w, "t_embedder.mlp.2", silu(linear(w, "t_embedder.mlp.0", time_features(t))))
    c = c + linear(w, "y_embedder.embedding_table", text)
    for i in range(MODEL["blocks"]):
        rows = linear(w, f"blocks.{i}.adaLN_modulation.1", silu(c))[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = (rows[..., j * D : (j + 1) * D] for j in range(6))
        x = x + gate1 * attention(w, f"blocks.{i}.attn", norm(x) * (1 + scale1) + shift1, hidden)
        h = linear(w, f"blocks.{i}.mlp.fc1", norm(x) * (1 + scale2) + shift2)
        x = x + gate2 * linear(w, f"blocks.{i}.mlp.fc2", gelu_tanh(h))

    def head(kind: str, tokens: torch.Tensor) -> torch.Tensor:
        rows = linear(w, f"final_layer.{kind}adaLN_modulation.1", silu(c))[:, None]
        return linear(w, f"final_layer.{kind}linear", norm(tokens) * (1 + rows[..., D:]) + rows[..., :D])

    rgb_out = unpatchify(head("", x[:, :n_rgb]), p, 2 * k * MODEL["channels"])
    pose_out = head("a_", x[:, n_rgb : n_rgb + n_pose])
    if not args.use_depth:
        return rgb_out, pose_out, None
    return rgb_out, pose_out, unpatchify(head("d_", x[:, n_rgb + n_pose :]), args.d_patch_size, 2 * k)
