"""Settings: every recipe composes, and every mistake names what would have been right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from padpolicy import config
from padpolicy.config import compose, rules
from padpolicy.diffusion.path import alphas_cumprod
from padpolicy.shipped import shipped

EXPERIMENTS = sorted(path.stem for path in shipped("configs/experiment").glob("*.yaml"))
TRAIN = ["out=run", "data.path=demos.zarr"]
DDPM = ["diffusion.objective=ddpm"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    cfg = config.load("train", ["out=run", f"experiment={name}", "data.path=demos.zarr"])
    assert isinstance(cfg, config.TrainConfig)
    assert cfg.name == name
    assert cfg.env.id, "an experiment says in which environment it is evaluated"


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in config.groups().items() for n in names])
def test_every_group_file_composes(group: str, name: str) -> None:
    verbs = {"robot": ("deploy", ["out=x"]), "protocol": ("eval", ["out=x", "checkpoint=x"])}
    verb, given = verbs.get(group, ("train", TRAIN))
    config.load(verb, [*given, f"{group}={name}"])


def test_the_command_line_wins_over_the_experiment_and_the_experiment_over_the_defaults() -> None:
    assert config.load("train", TRAIN).training.steps == config.TrainingConfig().steps
    tiny = config.load("train", [*TRAIN, "experiment=tiny"])
    assert 0 < tiny.training.steps < 100
    assert config.load("train", [*TRAIN, "experiment=tiny", "training.steps=7"]).training.steps == 7


def test_the_environment_of_every_verb_is_the_same_file() -> None:
    tabletop = config.load("eval", ["out=x", "checkpoint=tabletop", "env=tabletop"]).env
    assert tabletop.id == "padpolicy/Tabletop-v0"
    assert tabletop == config.load("collect", ["out=x", "env=tabletop"]).env == config.load("train", TRAIN).env


def test_lists_and_quotes_pass_through() -> None:
    cfg = config.load("eval", ["out=x", "checkpoint=a b", "tasks=[reach the red block, push/blue]"])
    assert (cfg.checkpoint, cfg.tasks) == ("a b", ["reach the red block", "push/blue"])


def test_dump_round_trips() -> None:
    yaml = pytest.importorskip("omegaconf").OmegaConf
    cfg = config.load("train", [*TRAIN, "experiment=tiny"])
    again = yaml.to_object(yaml.merge(yaml.structured(config.TrainConfig), yaml.create(config.dump(cfg))))
    assert again == cfg


MISTAKES = [
    ("train", [*TRAIN, "trainin.steps=3"], r"unknown setting 'trainin\.steps'\. Did you mean training\.steps"),
    ("train", [*TRAIN, "steps=3"], r"unknown setting 'steps'\. Did you mean .*\.steps"),
    ("train", [*TRAIN, "experimnt=tiny"], r"Did you mean experiment\?"),
    ("train", [*TRAIN, "experiment=tinny"], r"unknown 'experiment=tinny'\. configs/experiment/ has: .*tiny"),
    ("eval", ["out=x", "checkpoint=c", "env=moon"], r"unknown 'env=moon'\. configs/env/ has: .*tabletop"),
    ("train", [*TRAIN, "training.steps=many"], r"training\.steps: Value 'many' .* Integer"),
    ("train", [*TRAIN, "data.cameras=[front"], r"cannot read 'data\.cameras=\[front'"),
    ("train", [*TRAIN, "quick"], r"'quick' is not a setting; write key=value|cannot read 'quick'"),
    ("train", ["data.path=d"], r"train needs out=…"),
    ("eval", ["out=x"], r"eval needs checkpoint=…"),
    ("train", ["out=x"], r"Nothing to train on: give data\.path"),
    ("train", [*TRAIN, "model.width=100"], r"model\.width=100 is not a multiple of model\.heads=6"),
    ("train", [*TRAIN, "model.eyes=glass"], r"model\.eyes='glass': expected one of 'latents', 'stem'"),
    ("train", [*TRAIN, "training.batch_size=10", "training.accumulate=3"], r"batch_size=10 is not a multiple"),
    ("train", [*TRAIN, "diffusion.learn_variance=true"], r"needs diffusion\.objective=ddpm"),
    ("train", [*TRAIN, *DDPM, "diffusion.steps=3"], r"diffusion\.steps=3 does not divide diffusion\.train_steps=1000"),
    ("train", [*TRAIN, *DDPM, "evaluation.steps=7"], r"evaluation\.steps=7 does not divide"),
    ("train", [*TRAIN, *DDPM, "diffusion.train_steps=20"], r"diffusion\.train_steps=20: more than 20"),
    ("train", [*TRAIN, "model.heads=0"], r"model\.heads=0: at least 1"),
    ("train", [*TRAIN, "training.betas=[0.9]"], r"training\.betas=\[0\.9\]: two numbers in \[0, 1\)"),
    ("train", [*TRAIN, "training.clip_norm=0"], r"training\.clip_norm=0\.0: more than 0"),
    ("train", [*TRAIN, "training.ema=1.5"], r"training\.ema=1\.5: a share"),
    (
        "train",
        [*TRAIN, "data.future_cameras=[]", "diffusion.modes={policy:0,joint:1,forward:0,inverse:0}"],
        r"data\.future_cameras is empty: nothing would be trained",
    ),
    ("train", [*TRAIN, "diffusion.steps=0"], r"diffusion\.steps=0: at least 1"),
    ("train", [*TRAIN, "diffusion.action_draws=0"], r"diffusion\.action_draws=0: at least 1"),
    ("train", [*TRAIN, "training.log_every=-1"], r"training\.log_every=-1: at least 0"),
    ("train", [*TRAIN, "model.glance=true", "model.text=tokens"], r"model\.text=tokens has none: use model\.text=both"),
    ("train", [*TRAIN, "evaluation.exec_steps=17"], r"exec_steps=17 is more than data\.chunk_steps=16"),
    ("train", [*TRAIN, "+diffusion.modes.pollicy=1"], r"unknown mode 'pollicy'; did you mean policy\?"),
    ("train", [*TRAIN, "data.video_ratio=1.5"], r"data\.video_ratio=1\.5: a share, between 0 and 1"),
    ("train", [*TRAIN, "data.future_offsets_s=[0]"], r"future_offsets_s=\[0\.0\]: seconds after now"),
    ("eval", ["out=x", "checkpoint=c", "floor=ceiling"], r"floor='ceiling': expected one of"),
    ("eval", ["out=x", "checkpoint=c", "episodes_per_task=0"], r"episodes_per_task=0: at least 1"),
    ("collect", ["out=x", "noise=-1"], r"noise=-1\.0: a share"),
    ("collect", ["out=x", "env=metaworld", "env.options.goals=fixed", "noise=0"], r"the 10 episodes .* the same"),
    ("train", ["experiment=pad_paper", "family=unet", *TRAIN], r"experiment=pad_paper is a family already"),
    ("train", [*TRAIN, "family=unipi", "data.chunk_steps=9"], r"future_offsets_s=.*chunk_steps=9.* end at 0\.9 s"),
    ("train", [*TRAIN, "family=unipi", "diffusion.prefix_share=0.5"], r"prefix_share=0\.5 teaches .*policy and joint"),
    ("train", [*TRAIN, "family=pad", "diffusion.guidance=3"], r"text_dropout=0 never teaches"),
    ("train", [*TRAIN, "model.resnet_stages=5"], r"resnet_stages=5: expected one of 1, 2, 3, 4"),
    ("bench", ["what=family"], r"bench family needs out=FOLDER"),
    ("train", [*TRAIN, "family=unett"], r"unknown 'family=unett'\. configs/family/ has: .*unet"),
    (
        "train",
        [*TRAIN, "family=unet", "diffusion.modes.joint=1"],
        r"unknown mode 'joint'.*model.family=unet has policy",
    ),
    ("train", [*TRAIN, "family=unet", "data.videos=[v]"], r"video_modes: unknown mode 'video'.*=unet has policy"),
]


@pytest.mark.parametrize(("verb", "overrides", "message"), MISTAKES, ids=lambda v: v[-1] if isinstance(v, list) else "")
def test_mistakes_say_what_would_be_right(verb: str, overrides: list[str], message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.load(verb, overrides)


def test_out_must_not_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(config.ConfigError, match="is a file; expected a directory"):
        config.load("train", [f"out={file}", "data.path=d"])


def test_every_checked_name_is_a_setting() -> None:
    """A renamed setting must not silently lose its check."""
    known = {key for schema in config.SCHEMAS.values() for key in config.keys(schema())}
    assert {*rules._CHOICES, *rules._AT_LEAST, *rules._SHARES} <= known
    assert {*compose._MAY_CHANGE} <= known | {key.split(".")[0] for key in known}


def test_the_shortest_ddpm_schedule_ends_in_noise_and_no_further() -> None:
    """One step less and a beta reaches 1: nothing is left of the signal, and its logarithm is not a number."""
    shortest = config.load("train", [*TRAIN, *DDPM, "diffusion.train_steps=21", "diffusion.steps=7"]).diffusion
    assert alphas_cumprod(shortest.train_steps).min() > 0
    assert alphas_cumprod(shortest.train_steps - 1).min() <= 0


@pytest.mark.parametrize("experiment", [name for name in config.groups()["experiment"] if name != "pad_paper"])
@pytest.mark.parametrize("family", config.groups()["family"])
def test_a_family_stands_above_an_experiment_and_below_the_command_line(family: str, experiment: str) -> None:
    """What makes it that family holds whatever else an experiment sets."""
    asked = [f"experiment={experiment}", f"family={family}", "out=o", "data.path=d", "data.videos=[]", "data.dt_s=0.1"]
    cfg = config.load("train", [*asked, "model.width=96", "model.heads=4"])
    needed = {"unipi": "video inverse", "susie": "video inverse", "pad": "joint"}.get(family, "policy").split()
    assert {mode for mode, share in cfg.diffusion.modes.items() if share} == set(needed)
    assert cfg.model.width == 96
    assert cfg.model.family == (family if family in config.FAMILIES else "padpolicy")
    assert (cfg.diffusion.objective == "ddpm") == (family in ("pad", "unet", "transformer"))


def test_a_setting_that_came_later_was_its_default_before():
    cfg = config.load("train", TRAIN)
    before = config.to_dict(cfg)
    del before["diffusion"]["loss"], before["model"]["family"]
    assert config.changed(before, cfg) == []
    cfg.diffusion.loss = "bound"
    assert config.changed(before, cfg) == ["diffusion.loss was 'auto', is 'bound'"]
    before["diffusion"]["objective"] = cfg.diffusion.objective = "ddpm"
    assert "diffusion.loss was None, is 'bound'" in config.changed(before, cfg)


def test_modes_that_are_not_named_keep_their_share() -> None:
    default = config.DiffusionConfig().modes
    assert config.load("train", [*TRAIN, "diffusion.modes={policy:1}"]).diffusion.modes == {**default, "policy": 1.0}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.steps=9", "out=elsewhere", "training.threads=1", "data.workers=0", "training.init=x"], []),
        (["env.max_steps=3", "evaluation.seed=1", "diffusion.steps=2", "data.path=moved.zarr"], []),
        (["training.lr=0.5"], ["training.lr was 0.0005, is 0.5"]),
        (["seed=1", "training.batch_size=2"], ["seed was 0, is 1", "training.batch_size was 64, is 2"]),
        (["diffusion.modes.policy=1"], ["diffusion.modes.policy was 0.2, is 1.0"]),
        (["data.path=''", "data.videos=[v]"], ["data.path was 'demos.zarr', is ''", "data.videos was [], is ['v']"]),
    ],
)
def test_what_may_change_in_a_run_that_goes_on(overrides: list[str], said: list[str]) -> None:
    before = json.loads(json.dumps(config.to_dict(config.load("train", TRAIN))))
    assert config.changed(before, config.load("train", [*TRAIN, *overrides])) == said


def test_a_setting_that_came_or_went_is_a_change() -> None:
    before = config.to_dict(config.load("train", TRAIN))
    before["model"]["elbows"] = before["model"].pop("patch")
    said = config.changed(before, config.load("train", TRAIN))
    assert said == ["model.patch was None, is 2", "model.elbows was 2, is None"]
