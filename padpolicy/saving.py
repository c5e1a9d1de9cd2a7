"""A policy on disk: `model.safetensors` (the network), `policy.json` (settings, statistics, names of the encoders).

Nothing is pickled. A folder appears whole or not at all: it is written beside its place and renamed into it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from padpolicy.config import CAME_LATER, DiffusionConfig, EncodersConfig, ModelConfig
from padpolicy.data.normalizer import Normalizer
from padpolicy.encoders.depth import DepthScale
from padpolicy.encoders.image import ImageEncoder
from padpolicy.encoders.text import TextEncoder
from padpolicy.policy import PadPolicy
from padpolicy.shipped import shipped
from padpolicy.spec import PolicyConfig, PolicySpec

FORMAT = 2
HEADS = (".heads.", "final_layer.")  # weights of a network's answers, ours and PAD's
FUTURE_HEADS = (".heads.future_", *(f"final_layer.{part}" for part in ("norm", "linear", "adaLN", "d_")))
HUB = "hub:"  # `hub:OWNER/NAME` is a policy on the Hugging Face hub, `hub:OWNER/NAME@REVISION` one version of it
FILES = ["policy.json", "model.safetensors", "monitor.json", "image_encoder/*", "text_encoder/*"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: says which file, what is wrong with it and what to do."""


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Calls `fill(temporary folder)`, syncs what it wrote and renames the folder to `path`, replacing an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.rename(path, old / path.name)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_policy(policy: PadPolicy, path: str | Path, weights: dict[str, torch.Tensor] | None = None, **options) -> None:
    """Writes a policy folder, atomically.

    Args:  weights: instead of the policy's own, for example their moving average.
           dtype: of floating-point weights on disk; None keeps theirs.
           bundle: copy the frozen encoders into the folder, so that it needs nothing else.
    """
    write_folder(Path(path), lambda folder: fill_policy(policy, folder, weights, **options))


def fill_policy(
    policy: PadPolicy,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
    bundle: bool = False,
) -> None:
    """Writes a policy's files into an existing folder; `save_policy` makes that atomic."""
    weights = policy.state_dict() if weights is None else weights
    if dtype is not None:
        weights = {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}
    save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, folder / "model.safetensors")
    text = {"format": FORMAT, **policy.to_json(), "bundle": bundle}
    (folder / "policy.json").write_text(json.dumps(text, indent=1))
    if bundle:
        policy.image_encoder.save(folder / "image_encoder")
        policy.text_encoder.save(folder / "text_encoder")


def find_policy(name: str | Path) -> Path:
    """The policy folder behind a name: a shipped policy, a policy folder, a run (its newest checkpoint), or the hub.

    Raises:  CheckpointError listing what was looked for.
    """
    if str(name).startswith(HUB):
        return _download(str(name).removeprefix(HUB))
    path = Path(name)
    if not path.exists() and len(path.parts) == 1:
        try:
            return shipped(f"data/weights/{name}")
        except FileNotFoundError:
            pass
    for candidate in (path, path / "policy"):
        if (candidate / "policy.json").is_file():
            return candidate
    steps = sorted((path / "checkpoints").glob("step_*/policy/policy.json"))
    if steps:
        return steps[-1].parent
    raise CheckpointError(
        f"no policy at {str(name)!r}: expected a folder with policy.json and model.safetensors, a training run with "
        "checkpoints/step_*, or the name of a shipped policy (metaworld10, tabletop)."
    )


def _download(name: str) -> Path:
    """A policy's files from the hub, or from its cache where they are already."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"no policy {name!r} on the hub, or the hub cannot be reached ({' '.join(str(error).split())[:160]}). "
            "Expected hub:OWNER/NAME or hub:OWNER/NAME@REVISION."
        ) from None


def push_policy(policy: PadPolicy, repo: str, **options) -> str:
    """Uploads a policy and its encoders to the hub as `repo` ("OWNER/NAME"), creating it. Returns the commit's address.

    Args:  options: of `huggingface_hub.HfApi.upload_folder`, such as commit_message, revision or token.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None))
    api.create_repo(repo, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fill_policy(policy, Path(folder), bundle=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, **options))


def load_policy(name: str | Path, device: str | torch.device = "cpu") -> PadPolicy:
    """Reads a policy, its encoders included, ready to act (evaluation mode).

    Raises:  CheckpointError if a file is missing, damaged, of another format, or if an encoder is not the one that the
             policy was trained with.
    """
    folder = find_policy(name)
    saved, weights = read_settings(folder), _read_weights(folder)
    names = saved.config.encoders
    image_name, text_name = names.image, names.text
    if saved.bundle:
        image_name, text_name = str(folder / "image_encoder"), f"local-dir:{folder / 'text_encoder'}"
    image_encoder, text_encoder = ImageEncoder.load(image_name, device), TextEncoder.load(text_name, device)
    for kind, encoder in (("image", image_encoder), ("text", text_encoder)):
        if encoder.fingerprint != saved.fingerprints[kind]:
            raise CheckpointError(
                f"{folder} was trained with the {kind} encoder {saved.fingerprints[kind]}, but "
                f"{getattr(names, kind)!r} is {encoder.fingerprint} now. Give it the encoder it knows, or train again."
            )
    policy = PadPolicy(saved.config, saved.normalizer, saved.depth, image_encoder, text_encoder)
    load_weights(policy, {k: w.float() if w.is_floating_point() else w for k, w in weights.items()}, folder)
    return policy.to(device).eval()


@dataclass
class Saved:
    """What a policy.json says."""

    config: PolicyConfig
    normalizer: Normalizer
    depth: DepthScale
    fingerprints: dict[str, str]  # of the encoders "image" and "text"
    bundle: bool  # the encoders lie in the same folder


def read_settings(folder: Path) -> Saved:
    """Reads what `PadPolicy.to_json` wrote. Nothing has a default: a setting that is not there was something else then.

    Raises:  CheckpointError for a file that is damaged or of another format, for settings that are missing or unknown
             here, and for a robot without statistics.
    """
    try:
        text = json.loads((folder / "policy.json").read_text())
    except (ValueError, OSError) as error:
        raise _damaged(folder, f"policy.json: {error}") from None
    found = text.get("format") if isinstance(text, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{folder}/policy.json has format {found!r}, this version reads {FORMAT}.")
    try:
        config = PolicyConfig(
            spec=_whole(PolicySpec, text["config"]["spec"]),
            model=_whole(ModelConfig, text["config"]["model"]),
            diffusion=_whole(DiffusionConfig, _with_answers(text["config"]["diffusion"])),
            encoders=_whole(EncodersConfig, text["config"]["encoders"]),
        )
        normalizer, depth = Normalizer.from_json(text["normalizer"]), _whole(DepthScale, text["depth"])
        fingerprints, bundle = text["fingerprints"], text["bundle"]
        if needed := {"image", "text"} - fingerprints.keys():
            raise KeyError(f"fingerprints of {', '.join(sorted(needed))}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}/policy.json does not describe a policy of this version: {type(error).__name__} {error}. "
            "Load it with the version that wrote it, or copy the file again."
        ) from None
    stats, spec = normalizer.stats, config.spec
    missing = ["action"] * bool(spec.action and "action" not in stats.get(spec.robot, {}))
    missing += ["proprio"] * bool(spec.proprio_dim and not any("proprio" in fields for fields in stats.values()))
    if missing:
        known = ", ".join(f"{robot} ({', '.join(fields)})" for robot, fields in stats.items()) or "none"
        raise CheckpointError(
            f"{folder}/policy.json has no statistic of {' and '.join(missing)} for robot {spec.robot!r}; it "
            f"has: {known}. Without it real units cannot be told from the network's: copy the file from the training "
            "run again."
        )
    return Saved(config, normalizer, depth, fingerprints, bundle)


def _with_answers(diffusion: dict[str, Any]) -> dict[str, Any]:
    """What a ddpm network says was no setting before there were schedules to choose from: it was the noise."""
    if diffusion["objective"] == "ddpm" and "schedule" not in diffusion:
        return diffusion | {"predict_action": "noise", "predict_future": "noise"}
    return diffusion


def _whole(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass from exactly its own fields. Raises ValueError naming those that are missing or unknown."""
    known = [field.name for field in fields(kind)]
    wrong = [f"{key} is missing" for key in known if key not in values and key not in CAME_LATER]
    wrong += [f"{key} is unknown" for key in values if key not in known]
    if wrong:
        raise ValueError(f"{kind.__name__}: {', '.join(wrong)}")
    return kind(**values)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise _damaged(folder, error) from None


def _damaged(folder: Path, why: object) -> CheckpointError:
    return CheckpointError(f"{folder} is damaged or cut short ({why}). Copy it again, or take an earlier checkpoint.")


def load_weights(policy: PadPolicy, weights: dict[str, torch.Tensor], where: Path) -> None:
    """Fills the network.

    Raises:  CheckpointError naming the tensors that are missing, unknown or of another shape.
    """
    own = policy.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in weights] + [f"{k} is unknown" for k in weights if k not in own]
    wrong += [
        f"{k} has shape {tuple(weights[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{where} does not fit this network: {'; '.join(wrong[:3])}{more}. Use the settings and the robot "
            "that it was made with, or train into another out."
        )
    policy.load_state_dict(weights)


def load_fitting(policy: PadPolicy, name: str | Path) -> list[str]:
    """Starts a policy from another one's weights, tensor by tensor where name and shape agree.

    The future's heads stay fresh where what they say of a frame means something else there (and all heads where they
    also say a variance): an answer that is read as another quantity is worse than none.

    Returns: the names of what stays fresh.
    Raises:  CheckpointError if there is no such policy, it is damaged, its answers mean something else, or not one
             tensor fits.
    """
    folder = find_policy(name)
    theirs, ours = read_settings(folder).config.diffusion, policy.config.diffusion
    for key in ("objective", "predict_action"):
        if (there := getattr(theirs, key)) != (here := getattr(ours, key)):
            raise CheckpointError(
                f"{folder} was trained with diffusion.{key}={there}, this policy has {here}: its answers would be read "
                f"as something else. Set diffusion.{key}={there}, or start without these weights."
            )
    weights, own = _read_weights(folder), policy.state_dict()
    foreign: tuple[str, ...] = ()
    if theirs.future != ours.future or theirs.predict_future != ours.predict_future:
        foreign = FUTURE_HEADS
    if theirs.learn_variance != ours.learn_variance:
        foreign = HEADS
    weights = {k: w for k, w in weights.items() if not any(part in k for part in foreign)}
    fitting = {k: w.to(own[k].dtype) for k, w in weights.items() if k in own and w.shape == own[k].shape}
    if not fitting:
        raise CheckpointError(
            f"{folder}: none of its {len(weights)} tensors fits this network; check the model settings."
        )
    policy.load_state_dict(fitting, strict=False)
    return [k for k in own if k not in fitting]
