"""A policy on disk: what is read back is what was saved, and what is damaged says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import robot_sample, small_policy

from padpolicy.batch import Batch, collate
from padpolicy.config import DiffusionConfig, EncodersConfig, ModelConfig
from padpolicy.data.normalizer import Normalizer
from padpolicy.encoders import image, text
from padpolicy.encoders.depth import DepthScale
from padpolicy.policy import PadPolicy
from padpolicy.saving import CheckpointError, find_policy, load_fitting, load_policy, save_policy, write_folder
from padpolicy.spec import PolicyConfig


@pytest.fixture(scope="module")
def policy() -> PadPolicy:
    """A small random policy with the encoders that ship."""
    torch.set_num_threads(1)
    names = EncodersConfig(text_tokens=8)
    encoders = image.ImageEncoder.load(names.image), text.TextEncoder.load(names.text)
    like = small_policy()
    settings = like.config.model.__dict__
    config = PolicyConfig(like.spec, ModelConfig(**settings), DiffusionConfig(steps=2), names)
    torch.manual_seed(0)
    policy = PadPolicy(config, Normalizer(like.normalizer.stats), DepthScale(500.0, 100.0), *encoders)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return policy.eval()


@pytest.fixture(scope="module")
def saved(policy: PadPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "policy"
    save_policy(policy, path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copy = tmp_path / "policy"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def observation() -> Batch:
    return collate([robot_sample(0), robot_sample(1, "push the cube")])


def predict(policy: PadPolicy) -> torch.Tensor:
    return policy.predict(observation(), generator=torch.Generator().manual_seed(0)).action


def edit(folder: Path, change) -> None:
    file = folder / "policy.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def rename(old: str, new: str):
    return lambda values: values["config"]["diffusion"].update({new: values["config"]["diffusion"].pop(old)})


def test_a_saved_policy_predicts_the_same_to_the_last_bit(policy, saved) -> None:
    again = load_policy(saved)
    assert torch.equal(predict(again), predict(policy))
    assert not again.training
    assert again.to_json() == policy.to_json()
    assert {file.name for file in saved.iterdir()} == {"model.safetensors", "policy.json"}


def test_averaged_weights_can_be_saved_in_their_place(policy, tmp_path) -> None:
    halved = {name: weight / 2 for name, weight in policy.state_dict().items()}
    save_policy(policy, tmp_path / "p", halved)
    for name, weight in load_policy(tmp_path / "p").state_dict().items():
        assert torch.equal(weight, halved[name])


def test_half_precision_on_disk(policy, saved, tmp_path) -> None:
    save_policy(policy, tmp_path / "p", dtype=torch.float16)
    files = [folder / "model.safetensors" for folder in (saved, tmp_path / "p")]
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size
    again = load_policy(tmp_path / "p")
    assert {weight.dtype for weight in again.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(predict(again), predict(policy), atol=0.02, rtol=0.02)


def test_a_bundle_needs_nothing_else(policy, tmp_path, monkeypatch) -> None:
    save_policy(policy, tmp_path / "p", bundle=True)

    def hidden(relative: str) -> Path:
        raise FileNotFoundError(relative)

    monkeypatch.setattr(image, "shipped", hidden)
    monkeypatch.setattr(text, "shipped", hidden)
    moved = (tmp_path / "p").rename(tmp_path / "elsewhere")
    torch.testing.assert_close(predict(load_policy(moved)), predict(policy), atol=0.02, rtol=0.02)


def test_a_run_and_a_checkpoint_are_names_too(folder, tmp_path) -> None:
    for step in (2, 10):
        target = tmp_path / "run" / "checkpoints" / f"step_{step:08d}" / "policy"
        target.parent.mkdir(parents=True)
        target.mkdir()
        (target / "policy.json").write_text("{}")
    newest = tmp_path / "run" / "checkpoints" / "step_00000010"
    assert find_policy(tmp_path / "run") == find_policy(newest) == find_policy(newest / "policy") == newest / "policy"
    assert find_policy(folder) == folder


# -- what can be wrong --------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_what_was_looked_for(tmp_path) -> None:
    for name in ("moon", str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(CheckpointError) as error:
            load_policy(name)
        for words in (f"no policy at {name!r}", "policy.json and model.safetensors", "checkpoints/step_*", "tabletop"):
            assert words in str(error.value)


@pytest.mark.parametrize("file", ["model.safetensors", "policy.json"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_file(folder, file, keep) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="policy is damaged or cut short.*take an earlier checkpoint"):
        load_policy(folder)


def test_weights_that_are_not_there(folder) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is damaged or cut short .*model.safetensors"):
        load_policy(folder)


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_tensors_that_are_missing_unknown_or_of_another_shape(folder) -> None:
    names = sorted(load_file(folder / "model.safetensors"))
    change_weights(folder, lambda weights: weights.pop(names[0]))
    with pytest.raises(CheckpointError, match=f"does not fit this network: {names[0]} is missing"):
        load_policy(folder)
    change_weights(folder, lambda weights: weights.update({names[0]: torch.zeros(7, 7, 7), "elbow": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=rf"elbow is unknown; {names[0]} has shape \(7, 7, 7\), expected"):
        load_policy(folder)


def test_weights_for_other_action_dimensions(folder) -> None:
    def another_arm(values: dict) -> None:
        values["config"]["spec"]["action_dim"] = 7
        for numbers in values["normalizer"]["stats"]["arm"]["action"].values():
            numbers += numbers[:1] * 4

    edit(folder, another_arm)
    with pytest.raises(CheckpointError, match=r"does not fit this network: .*action.* has shape .*3.*, expected .*7"):
        load_policy(folder)


def test_another_format(folder) -> None:
    edit(folder, lambda values: values.update(format=99))
    with pytest.raises(CheckpointError, match="policy.json has format 99, this version reads 2"):
        load_policy(folder)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_another_encoder_than_in_training(folder, kind) -> None:
    edit(folder, lambda values: values["fingerprints"].update({kind: "0123456789abcdef"}))
    words = f"was trained with the {kind} encoder 0123456789abcdef, but 'shipped:.*Give it the encoder it knows"
    with pytest.raises(CheckpointError, match=words):
        load_policy(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.pop("config"), "KeyError 'config'"),
        (lambda values: values["config"]["model"].update(elbows=2), "ModelConfig: elbows is unknown"),
        (lambda values: values["config"]["spec"].pop("action_dim"), "PolicySpec: action_dim is missing"),
        (rename("predict_action", "predict"), "predict_action is missing, predict is unknown"),
        (lambda values: values["depth"].pop("std_mm"), "DepthScale: std_mm is missing"),
        (lambda values: values.pop("bundle"), "KeyError 'bundle'"),
        (lambda values: values["fingerprints"].pop("text"), "fingerprints of text"),
        (lambda values: values["normalizer"]["stats"]["arm"]["action"]["scale"].__setitem__(0, 0.0), "is damaged"),
    ],
)
def test_settings_that_are_not_a_policys(folder, change, words) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=f"policy.json does not describe a policy of this version.*{words}"):
        load_policy(folder)


def test_a_missing_statistic(policy, folder) -> None:
    values = json.loads((folder / "policy.json").read_text())
    values["config"]["spec"]["action"] = {"names": ["x", "y", "z"]}
    values["normalizer"]["stats"] = {"leg": values["normalizer"]["stats"]["arm"]}
    (folder / "policy.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"no statistic of action for robot 'arm'; it has: leg \(action, proprio"):
        load_policy(folder)


# -- starting from another policy's weights -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy to start from: flow, velocities of actions, clean changes of the future."""
    path = tmp_path_factory.mktemp("another") / "policy"
    save_policy(small_policy(), path)
    return path


@pytest.mark.parametrize(
    ("settings", "fresh"),
    [
        ({}, "no tensor"),
        ({"coupling": "full", "tau_law": "beta"}, "no tensor"),
        ({"predict_future": "velocity"}, ".heads.future_"),
        ({"future": "frame"}, ".heads.future_"),
    ],
)
def test_what_means_the_same_is_taken_over(another, settings, fresh) -> None:
    policy, given = small_policy(seed=1, **settings), load_file(another / "model.safetensors")
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    assert load_fitting(policy, another) == [name for name in before if fresh in name]
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, before[name] if fresh in name else given[name]), name


def test_pads_answers_of_the_future_stay_fresh_where_they_mean_something_else(tmp_path) -> None:
    pad = {"family": "pad", "text": "pooled", "glance": False}

    def policy(future: str) -> PadPolicy:
        return small_policy(model=pad, cameras=("front",), coupling="pad", times="shared", future=future)

    save_policy(policy("frame"), tmp_path / "p")
    assert load_fitting(policy("frame"), tmp_path / "p") == []
    fresh = load_fitting(policy("change"), tmp_path / "p")
    answers = {name.split("final_layer.")[1].split(".")[0] for name in fresh}
    assert answers == {"linear", "adaLN_modulation", "d_linear", "d_adaLN_modulation"}


@pytest.mark.parametrize("settings", [{"objective": "ddpm"}, {"predict_action": "clean"}])
def test_answers_that_mean_something_else_are_not_taken_over(another, settings) -> None:
    (key,) = settings
    with pytest.raises(
        CheckpointError, match=rf"was trained with diffusion.{key}=\w+, this policy has {settings[key]}"
    ):
        load_fitting(small_policy(**settings), another)


def test_heads_with_a_variance_are_not_those_without(tmp_path) -> None:
    save_policy(small_policy(objective="ddpm"), tmp_path / "p")
    policy = small_policy(objective="ddpm", learn_variance=True)
    fresh = load_fitting(policy, tmp_path / "p")
    assert fresh == [name for name in policy.state_dict() if ".heads." in name]


def test_weights_alone_are_nothing_to_start_from(folder) -> None:
    edit(folder, lambda values: values.update(format=1))
    with pytest.raises(CheckpointError, match="policy.json has format 1, this version reads 2"):
        load_fitting(small_policy(), folder)
    (folder / "policy.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"is damaged or cut short \(policy.json: "):
        load_fitting(small_policy(), folder)
    (folder / "policy.json").unlink()
    with pytest.raises(CheckpointError, match="no policy at"):
        load_fitting(small_policy(), folder)


def test_a_save_that_dies_leaves_the_old_folder_and_no_rubbish(tmp_path) -> None:
    path = tmp_path / "policy"
    write_folder(path, lambda folder: (folder / "a").write_text("old"))

    def dies(folder: Path) -> None:
        (folder / "a").write_text("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(path, dies)
    assert (path / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy"]
    write_folder(path, lambda folder: (folder / "b").write_text("new"))
    assert [entry.name for entry in path.iterdir()] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy"]


def test_a_policy_on_the_hub_is_a_name_too(policy, saved, tmp_path, monkeypatch) -> None:
    """From the hub's own cache, laid out as its library lays it out; nothing is fetched."""
    version = "0" * 40
    repo = tmp_path / "models--somebody--arm"
    shutil.copytree(saved, repo / "snapshots" / version)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(version)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = find_policy("hub:somebody/arm")
    assert (found / "policy.json").read_bytes() == (saved / "policy.json").read_bytes()
    with pytest.raises(CheckpointError, match="no policy 'nobody/arm' on the hub.*hub:OWNER/NAME"):
        find_policy("hub:nobody/arm")
