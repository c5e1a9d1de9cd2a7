"""Weights in the form that DiT and PAD were released in, in and out. The network has their names (model/pad.py).

    PAD  {"model": state_dict, "args": argparse.Namespace}, pickled by torch
    DiT  state_dict, of ImageNet: labels instead of text, one frame, nothing known

Of a pickle only tensors, plain values and Namespace are read: nothing in it is run. The same tensors as safetensors,
with `args` as JSON in the metadata, are read and written too.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from padpolicy import config
from padpolicy.config import EncodersConfig
from padpolicy.data.actions import ActionSpec
from padpolicy.data.normalizer import Normalizer
from padpolicy.encoders.depth import DepthScale
from padpolicy.encoders.image import ImageEncoder
from padpolicy.encoders.text import TextEncoder
from padpolicy.model.pad import PadNetwork
from padpolicy.policy import PadPolicy
from padpolicy.saving import CheckpointError, load_weights
from padpolicy.spec import PolicyConfig, PolicySpec

SUFFIXES = (".pt", ".pth", ".safetensors")
DEPTH = DepthScale(0.0, 10_000.0)  # PAD divides millimetres by this
LABELS, TEXT = "y_embedder.embedding_table.weight", "y_embedder.embedding_table."
PATCHES = "x_embedder.proj.weight"
NEEDED = ["image_size", "predict_horizon", "action_steps", "action_dim", "action_condition", "use_depth", "attn_mask"]
NEEDED += ["action_scale", "absolute_action", "skip_step"]


def is_released(name: str) -> bool:
    """Is this the name of a file of weights, and not of a policy?"""
    return name.endswith(SUFFIXES)


def load_released(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by their released names, and `args` (empty where a file has none). The average, where both are there.

    Raises:  CheckpointError for a file that is not there or damaged, and for a pickle with anything else in it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not there; expected a file of weights ({', '.join(SUFFIXES)}).")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                args = json.loads((file.metadata() or {}).get("args", "{}"))
            found: Any = {"model": load_file(path), "args": args}
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (named := re.search(r"(?:GLOBAL|class|function) (\S+)", str(error))) is None:
            raise CheckpointError(f"{path} is damaged, or no file of weights at all. Copy it again.") from None
        raise CheckpointError(
            f"{path} holds {named[1]}. Reading it could run code, so only tensors, plain values and argparse.Namespace "
            "are read. If you trust the file, load it where that does no harm and save its state_dict alone."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, struct.error, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}). Copy it again.") from None
    weights = found.get("ema", found.get("model", found)) if isinstance(found, dict) else found
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path} holds a {type(weights).__name__}; expected tensors by name.")
    args = found.get("args", {})
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    if not isinstance(args, dict):
        raise CheckpointError(f"{path}: args is a {type(args).__name__}; expected a Namespace or a dict.")
    wrong = [str(k) for k, w in weights.items() if not isinstance(k, str) or not isinstance(w, Tensor)]
    wrong += [f"args.{k}" for k, value in args.items() if not _plain(value)]
    if wrong:
        raise CheckpointError(f"{path}: {', '.join(wrong[:3])} is neither a tensor nor a plain value.")
    return {name.removeprefix("module."): w for name, w in weights.items()}, args


def save_released(path: str | Path, weights: dict[str, Tensor], args: dict[str, Any]) -> None:
    """The inverse of `load_released`; the suffix says in which format."""
    weights = {name: w.detach().cpu().contiguous() for name, w in weights.items()}
    if Path(path).suffix == ".safetensors":
        save_file(weights, path, {"args": json.dumps(args)})
    else:
        torch.save({"model": weights, "args": argparse.Namespace(**args)}, path)


def weights_of(policy: PadPolicy) -> dict[str, Tensor]:
    """A policy's weights by their released names."""
    return {name.removeprefix("network."): w for name, w in policy.state_dict().items()}


def start_from(policy: PadPolicy, path: str | Path) -> list[str]:
    """Starts a policy of the family `pad` from released weights where they fit, as PAD starts from DiT's of ImageNet.

    Returns: the names of what stays fresh.
    Raises:  CheckpointError if the policy is of another family, the file is a policy's own, or not one tensor fits.
    """
    network = policy.network
    weights, _ = load_released(path)
    if any(name.startswith("network.") for name in weights):
        raise CheckpointError(f"{path} is the file of a policy of ours: give the policy's folder as training.init.")
    if not isinstance(network, PadNetwork):
        raise CheckpointError(f"{path} holds weights of DiT or PAD: train with family=pad, or without training.init.")
    if LABELS in weights and TEXT + "bias" not in weights:
        _require(path, weights, PATCHES, "final_layer.linear.weight", "final_layer.linear.bias")
        weights = _widened(weights, network)
    own = network.state_dict()
    fitting = {k: w.to(own[k].dtype) for k, w in weights.items() if k in own and w.shape == own[k].shape}
    if not any(name.startswith("blocks.") for name in fitting):
        raise CheckpointError(
            f"{path}: none of its blocks fits a network of width {network.width}. Choose its size, such as model=XL."
        )
    network.load_state_dict(fitting, strict=False)
    return [f"network.{name}" for name in own if name not in fitting]


def _widened(weights: dict[str, Tensor], network: PadNetwork) -> dict[str, Tensor]:
    """DiT's weights for one frame and labels as PAD's for many frames, a present and text.

    Every noised frame enters as DiT's one, the present through zeros; every frame is answered as DiT's one. (PAD's
    code repeats the rows of the last layer in another order than it reads them in.) Text starts as zero.
    """
    frames, two, own = network.frames, network.out_factor, network.state_dict()
    patches = weights[PATCHES]
    blank = torch.zeros_like(patches).repeat(1, bool(network.camera), 1, 1)
    head: dict[str, Tensor] = {}
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = weights[name].unflatten(0, (-1, 2, 1, patches.shape[1]))[:, :two]  # p p, noise and variance, frame, C
        head[name] = rows.expand(-1, -1, frames, -1, *rows.shape[4:]).flatten(0, 3)
    silent = {name: torch.zeros_like(w) for name, w in own.items() if name.startswith(TEXT)}
    return {**weights, **head, **silent, PATCHES: torch.cat([*[patches] * frames, blank], 1)}


def import_pad(
    path: str | Path,
    encoders: EncodersConfig,
    *,
    camera: str,
    robot: str,
    step_s: float,
    names: list[str] | None = None,
    image_encoder: ImageEncoder | None = None,
    text_encoder: TextEncoder | None = None,
) -> PadPolicy:
    """A released PAD checkpoint as a policy.

    Args:    camera, robot: what they are called here.   step_s: seconds of one step of its recordings, of which its
             frames and poses are `skip_step` apart.   names: of the action's numbers; four are x, y, z, gripper.
             image_encoder, text_encoder: already loaded ones, instead of those that `encoders` names.
    Raises:  CheckpointError for a file that is no PAD checkpoint with poses and text, or other encoders than its own.
    """
    weights, args = load_released(path)
    needed = NEEDED + ["d_hidden_size", "d_patch_size"] * bool(args.get("use_depth"))
    if missing := [key for key in needed if args.get(key) is None]:
        raise CheckpointError(f"{path}: its args lack {', '.join(missing)}; expected a checkpoint of PAD's training.")
    if not args["action_steps"] or TEXT + "bias" not in weights:
        raise CheckpointError(f"{path} has no poses or no text, so it cannot act. It can be a training.init.")
    _require(path, weights, LABELS, PATCHES, "blocks.0.attn.qkv.weight")
    image = image_encoder or ImageEncoder.load(encoders.image)
    text = text_encoder or TextEncoder.load(encoders.text)
    width, text_width = weights[LABELS].shape
    if text_width != text.pooled_width:
        raise CheckpointError(
            f"{path} was told sentences as {text_width} numbers, encoders.text={encoders.text!r} gives "
            f"{text.pooled_width}. PAD's is CLIP's ViT-B/32: ViT-B-32-quickgelu/openai."
        )
    if (channels := weights[PATCHES].shape[1] // (1 + args["predict_horizon"])) != image.channels:
        raise CheckpointError(
            f"{path} imagines {channels} channels of latents, encoders.image={encoders.image!r} gives "
            f"{image.channels}. PAD's is stabilityai/sd-vae-ft-mse."
        )
    size = re.fullmatch(r"DiT-(\w+)/\d+", str(args.get("model")))
    heads = args.get("num_heads") or config.dit_sizes().get(size[1] if size else "", (0, 0, 0))[2]
    if not heads:
        raise CheckpointError(f"{path}: args.model is {args.get('model')!r}; expected DiT-S/2 … DiT-XL/8.")
    dims, dt_s, depth = args["action_dim"], args["skip_step"] * step_s, [camera] * bool(args["use_depth"])
    names = names or (["x", "y", "z", "gripper"] if dims == 4 else [f"a{i}" for i in range(dims)])
    kind, gripper = ("absolute" if args["absolute_action"] else "relative_to_chunk_start"), names[-1] == "gripper"
    action = ActionSpec(kind, names, dt_s, gripper="continuous" if gripper else "none")
    spec = PolicySpec(
        cameras=[camera],
        depth_cameras=depth,
        future_cameras=[camera],
        future_depth_cameras=depth,
        image_size=args["image_size"],
        obs_steps=1,
        chunk_steps=args["action_steps"],
        dt_s=dt_s,
        future_offsets_s=[dt_s * (i + 1) for i in range(args["predict_horizon"])],
        action_dim=dims,
        proprio_dim=dims,
        action=asdict(action),
        robot=robot,
        renderer="",
    )
    ours = _family()
    model = replace(
        ours.model,
        width=width,
        depth=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        heads=heads,
        patch=weights[PATCHES].shape[-1],
        one_pose_token=bool(args["action_condition"]),
    )
    if depth:
        model = replace(model, depth_size=args["d_hidden_size"], depth_patch=args["d_patch_size"])
    diffusion = replace(ours.diffusion, coupling="pad" if args["attn_mask"] else "full")
    scale = {"center": [0.0] * dims, "scale": [float(args["action_scale"])] * dims}
    normalizer = Normalizer({robot: {"action": scale, "proprio": scale}})
    policy = PadPolicy(PolicyConfig(spec, model, diffusion, encoders), normalizer, DEPTH, image, text)
    load_weights(policy, {f"network.{name}": w.float() for name, w in weights.items()}, Path(path))
    return policy.eval()


@lru_cache(maxsize=1)
def _family() -> config.TrainConfig:
    """The settings of the family, which a checkpoint's `args` then change."""
    return config.load("train", ["family=pad", "out=unused", "data.path=unused"])


def args_of(policy: PadPolicy, step_s: float | None = None) -> dict[str, Any]:
    """The `args` that PAD's code, and `import_pad`, would need to use this policy's weights.

    Args:    step_s: seconds of one step of the recordings; None: that of the actions.
    Raises:  CheckpointError for a policy that PAD's code has no words for: with a normaliser that is more than one
             factor, actions that are steps, a pose of another length than an action, other noise than PAD's, frames
             at other times than its poses, or poses that are no whole number of steps apart.
    """
    spec, model, network = policy.spec, policy.config.model, policy.network
    diffusion, steps = policy.config.diffusion, spec.dt_s / (step_s or spec.dt_s)
    pads = _family().diffusion
    noise = [
        f"diffusion.{key}={mine!r}"
        for key in ("objective", "predict_action", "predict_future", "schedule", "train_steps", "future", "times")
        if (mine := getattr(diffusion, key)) != getattr(pads, key)
    ]
    frames = [spec.dt_s * (i + 1) for i in range(len(spec.future_offsets_s))]
    stats = policy.normalizer.stats.get(spec.robot, {})
    scales = {scale for entry in stats.values() for scale in entry["scale"]}
    kind = spec.action.get("kind")
    wrong = {
        f"family {model.family!r}": not isinstance(network, PadNetwork),
        f"conditioning {model.conditioning!r}": model.conditioning != "adaln_zero",
        "a fixed variance": policy.objective.out_factor == 1,
        "statistics other than one factor": len(scales) != 1 or any(any(e["center"]) for e in stats.values()),
        f"{kind!r} actions": kind not in ("absolute", "relative_to_chunk_start"),
        f"{spec.proprio_dim} numbers of pose": spec.proprio_dim != spec.action_dim,
        f"depth scaled by {policy.depth_scale}": bool(spec.depth_cameras) and policy.depth_scale != DEPTH,
        f"{spec.obs_steps} observed frames": spec.obs_steps != 1,
        f"mlp_ratio={model.mlp_ratio:g}": model.mlp_ratio != 4,
        f"frames at {spec.future_offsets_s} s beside poses each {spec.dt_s:g} s": not np.allclose(
            frames, spec.future_offsets_s
        ),
        f"actions each {steps:g} steps": round(steps) < 1 or abs(steps - round(steps)) > 1e-6,
    } | dict.fromkeys(noise, True)
    if what := [name for name, is_so in wrong.items() if is_so]:
        raise CheckpointError(f"PAD's checkpoints know no {' and no '.join(what)}; save the weights without args.")
    size = next(
        (name for name, size in config.dit_sizes().items() if size == (model.width, model.depth, model.heads)), "custom"
    )
    return {
        "model": f"DiT-{size}/{model.patch}",
        "num_heads": model.heads,
        "image_size": spec.image_size,
        "predict_horizon": len(spec.future_offsets_s),
        "action_steps": spec.chunk_steps,
        "action_dim": spec.action_dim,
        "action_condition": model.one_pose_token,
        "use_depth": bool(spec.depth_cameras),
        "d_hidden_size": model.depth_size,
        "d_patch_size": model.depth_patch,
        "attn_mask": diffusion.coupling == "pad",
        "text_cond": True,
        "dynamics": True,
        "learnable_action_pos": False,
        "action_scale": scales.pop(),
        "absolute_action": kind == "absolute",
        "skip_step": round(steps),
    }


def _require(path: str | Path, weights: dict[str, Tensor], *names: str) -> None:
    if lacking := [name for name in names if name not in weights]:
        raise CheckpointError(f"{path} lacks {', '.join(lacking)}; expected the weights of DiT or PAD. Copy it again.")


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str)
