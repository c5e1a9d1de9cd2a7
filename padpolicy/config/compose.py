"""From YAML files and the command line to the dataclasses, and from there to text and back to an older run's."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from padpolicy.config.rules import check
from padpolicy.config.schema import CAME_LATER, SCHEMAS, ConfigError, EvalConfig, TrainConfig
from padpolicy.shipped import shipped

_MAY_CHANGE = (  # in a run that goes on: how long it lasts, what is watched of it, what changes rounding alone
    "out",
    "name",
    "env",
    "evaluation",
    "data.workers",
    "data.cache_mb",
    "model.recompute",
    "diffusion.sampler",
    "diffusion.steps",
    "diffusion.clip_action",
    "diffusion.guidance",
    "diffusion.guidance_future",
    "diffusion.guidance_channels",
    "training.steps",
    "training.max_seconds",
    "training.init",
    "training.accumulate",
    "training.threads",
    "training.device",
    "training.log_every",
    "training.checkpoint_every",
    "training.validate_every",
    "training.imagine_every",
    "training.evaluate_every",
    "training.keep_checkpoints",
)


def load(verb: str, overrides: Sequence[str] = ()) -> Any:
    """Composes `configs/<verb>.yaml` with command-line overrides (`group=name`, `key=value`) into its dataclass.

    Raises:  ConfigError with the nearest valid name for a misspelt key, group or choice, and for a missing value.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
    GlobalHydra.instance().clear()
    _one_family(verb, overrides)
    try:
        with initialize_config_dir(str(shipped("configs")), version_base="1.3"):
            tree = compose(verb, overrides=list(overrides))
        cfg = OmegaConf.to_object(tree)
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or str(error).split(":")[-1].strip()
        raise ConfigError(f"padpolicy {verb} needs {key}=…, and it was not given.") from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(verb, overrides, error)) from None
    if isinstance(cfg, TrainConfig):
        cfg.data.path = _shipped_data(cfg.data.path)
        cfg.data.more = [_shipped_data(path) for path in cfg.data.more]
        cfg.data.videos = [_shipped_data(path) for path in cfg.data.videos]
    if isinstance(cfg, EvalConfig):
        cfg.demonstrations, cfg.imagination = _shipped_data(cfg.demonstrations), _shipped_data(cfg.imagination)
    check(cfg)
    return cfg


def _one_family(verb: str, overrides: Sequence[str]) -> None:
    """Raises ConfigError for a family beside an experiment that is one: neither would be whole."""
    chosen = dict(override.split("=", 1) for override in overrides if "=" in override)
    file = shipped("configs") / "experiment" / f"{chosen.get('experiment')}.yaml"
    if "family" in chosen and file.is_file() and "/family/" in file.read_text():
        raise ConfigError(
            f"padpolicy {verb}: experiment={chosen['experiment']} is a family already; give it without "
            f"family={chosen['family']}, or that one with another experiment."
        )


def _shipped_data(path: str) -> str:
    """`shipped:sample/x` -> where data/sample/x is on this machine; other paths stay, and so does a weight behind @."""
    if not path.startswith("shipped:"):
        return path
    name, weight = split_weight(path.removeprefix("shipped:"))
    return str(shipped(f"data/{name}")) + (f"@{weight:g}" if weight != 1 else "")


def dump(cfg: Any) -> str:
    """A configuration as YAML, every setting written out."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def to_dict(cfg: Any) -> dict[str, Any]:
    """A configuration as plain dicts and lists, ready for JSON."""
    return dataclasses.asdict(cfg)


def split_weight(path: str) -> tuple[str, float]:
    """`PATH@3` -> PATH, 3; a path that exists as it is, or that has no number behind an @, has the weight 1."""
    before, at, weight = path.rpartition("@")
    try:
        return (path, 1.0) if not at or Path(path).exists() else (before, float(weight))
    except ValueError:
        return path, 1.0


def changed(before: dict[str, Any], cfg: TrainConfig) -> list[str]:
    """What differs from the settings that a run was begun with (its config.json) and may not, as "key was …, is …"."""

    def may(key: str, was: Any, now: Any) -> bool:
        if key == "data.path":  # stores may move, but not come or go
            return bool(was) == bool(now)
        if key in ("data.more", "data.videos"):
            return [split_weight(path)[1] for path in was or ()] == [split_weight(path)[1] for path in now or ()]
        return key in _MAY_CHANGE or key.split(".")[0] in _MAY_CHANGE

    then, now = _flat(before), _flat(to_dict(cfg))
    if then.get("diffusion.objective") == "flow":  # what a ddpm network says was no setting then
        default = _flat(to_dict(TrainConfig(out=cfg.out)))
        then = {key: value for key, value in default.items() if key.split(".")[-1] in CAME_LATER} | then
    pairs = {key: (then.get(key), now.get(key)) for key in (*now, *then)}
    return [f"{key} was {a!r}, is {b!r}" for key, (a, b) in pairs.items() if a != b and not may(key, a, b)]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def evaluation_of(cfg: TrainConfig, out: str) -> EvalConfig:
    """The closed-loop evaluation that a training run's settings ask for, of its newest checkpoint."""
    shared = dataclasses.asdict(cfg.evaluation)
    return EvalConfig(
        checkpoint=cfg.out,
        out=out,
        tasks=list(cfg.env.tasks),
        env=cfg.env,
        device=cfg.training.device,
        threads=cfg.training.threads,
        **shared,
    )


def groups() -> dict[str, list[str]]:
    """What `group=name` on the command line may select: {"env": ["tabletop"], "experiment": [...], ...}."""
    folders = (path for path in sorted(shipped("configs").iterdir()) if path.is_dir())
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


def dit_sizes() -> dict[str, tuple[int, int, int]]:
    """What `model=NAME` stands for: width, depth and heads of DiT's S, B, L and XL."""
    from omegaconf import OmegaConf

    read = {path.stem: OmegaConf.load(path) for path in (shipped("configs") / "model").glob("*.yaml")}
    return {name: (size.width, size.depth, size.heads) for name, size in read.items()}


def _explain(verb: str, overrides: Sequence[str], error: Exception) -> str:
    """Hydra's message in one paragraph, with the nearest key that exists."""
    if hasattr(error, "override"):  # hydra's OverrideParseException
        return f"padpolicy {verb}: cannot read {error.override!r}; write key=value, and close brackets and quotes."
    known = sorted(keys(SCHEMAS[verb]()))
    choices = groups()
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~")
        if not equals:
            return f"padpolicy {verb}: {override!r} is not a setting; write key=value, for example {known[-1]}=…"
        if key in choices:
            if value not in choices[key]:
                return f"padpolicy {verb}: unknown {override!r}. configs/{key}/ has: {', '.join(choices[key])}."
        elif key not in known:
            near = difflib.get_close_matches(key, known + list(choices), n=3)
            near = near or [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:3]
            hint = f"Did you mean {' or '.join(near)}?" if near else f"`padpolicy {verb} --help` lists them all."
            return f"padpolicy {verb}: unknown setting {key!r}. {hint}"
    text = str(error.__cause__ or error)
    field_name = next((line.split(":")[1].strip() for line in text.splitlines() if "full_key:" in line), "")
    text = " ".join(line for line in text.splitlines() if not re.match(r"\s*(full_key|\w+_type|See )", line))
    return f"padpolicy {verb}: {field_name + ': ' if field_name else ''}{' '.join(text.split())}"


def keys(node: Any, prefix: str = "") -> list[str]:
    """The dotted names of all settings below a configuration dataclass."""
    names: list[str] = []
    for key, value in vars(node).items():
        names += keys(value, f"{prefix}{key}.") if dataclasses.is_dataclass(value) else [prefix + key]
    return names
