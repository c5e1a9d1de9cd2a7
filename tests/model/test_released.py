"""Released weights in and out: what is read of a pickle, round trips, ImageNet's start, and pad_paper end to end."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from model.pad_reference import arguments, random_weights
from safetensors.torch import save_file
from small import HashEncoder, MeanEncoder, small_policy
from tiny_run import use_exact_encoders
from torch import nn

from padpolicy import config
from padpolicy.config import EncodersConfig
from padpolicy.evaluation.run import run_evaluation
from padpolicy.model.pad import PadNetwork
from padpolicy.policy import PadPolicy
from padpolicy.released import args_of, import_pad, load_released, save_released, start_from, weights_of
from padpolicy.saving import CheckpointError, load_policy
from padpolicy.training.loop import train


def policy_from(path: Path) -> PadPolicy:
    encoders = {"image_encoder": MeanEncoder(), "text_encoder": HashEncoder()}
    return import_pad(path, EncodersConfig(), camera="front", robot="arm", step_s=0.0125, **encoders)


@pytest.fixture
def released(tmp_path) -> Path:
    """A checkpoint as PAD's training writes it."""
    args = arguments()
    torch.save({"model": random_weights(args), "args": args}, tmp_path / "pad.pt")
    return tmp_path / "pad.pt"


def test_a_checkpoint_becomes_a_policy_with_its_scales_and_times(released):
    policy = policy_from(released)
    spec = policy.spec
    assert spec.future_offsets_s == pytest.approx([0.05, 0.1, 0.15])
    assert (spec.chunk_steps, spec.dt_s, spec.action["kind"]) == (3, pytest.approx(0.05), "absolute")
    assert policy.acts_in == "joint"
    assert policy.normalizer.normalize("action", torch.tensor([[0.1, 0.2, 0.3, 1.0]]), ["arm"]).tolist() == [
        pytest.approx([1, 2, 3, 10])
    ]
    assert policy.depth_scale.standardise(torch.tensor(2500.0)) == 0.25
    assert policy.config.diffusion.objective == "ddpm" and policy.config.diffusion.learn_variance


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_saving_back_gives_the_same_names_numbers_and_args(released, suffix):
    policy = policy_from(released)
    back = released.with_name(f"back{suffix}")
    save_released(back, weights_of(policy), args_of(policy, step_s=0.0125))
    (before, args), (after, args_after) = load_released(released), load_released(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {key: args_after[key] for key in args} == {**args, "model": "DiT-custom/2"}
    again = policy_from(back)
    assert again.config == policy.config
    assert again.to_json() == policy.to_json()


def test_weights_of_several_processes_and_their_average_are_read(tmp_path):
    weights = {"module.pos_embed": torch.ones(1, 2, 4)}
    torch.save({"model": {}, "ema": weights, "opt": {"state": {}}, "args": argparse.Namespace()}, tmp_path / "w.pt")
    assert torch.equal(load_released(tmp_path / "w.pt")[0]["pos_embed"], torch.ones(1, 2, 4))


class Malice:
    """Run by any reader that trusts the file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("where", ["model", "args", "alone"])
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path, where):
    mark, path = tmp_path / "it ran", tmp_path / "evil.pt"
    args = argparse.Namespace(image_size=Malice(mark)) if where == "args" else argparse.Namespace()
    evil = {"model": {"pos_embed": Malice(mark) if where == "model" else torch.ones(1)}, "args": args}
    torch.save(Malice(mark) if where == "alone" else evil, path)
    with pytest.raises(CheckpointError, match=r"evil\.pt holds \w+\.mkdir.*only tensors, plain values.*save its state"):
        load_released(path)
    assert not mark.exists()


def test_that_pickle_is_as_malicious_as_it_looks(tmp_path):
    torch.save(Malice(tmp_path / "it ran"), tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "it ran").is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"x": torch.ones(1)}, "args": argparse.Namespace(sizes={1, 2})}, r"args\.sizes is neither"),
        ({"model": {"x": 3}, "args": argparse.Namespace()}, "x is neither a tensor"),
        ([torch.ones(1)], "holds a list; expected tensors by name"),
        ({"model": {"x": torch.ones(1)}, "args": None}, "args is a NoneType; expected a Namespace"),
    ],
)
def test_what_is_harmless_and_still_no_checkpoint_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message):
        load_released(tmp_path / "w.pt")


def test_damage_and_absence_are_told_apart(released):
    released.write_bytes(released.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load_released(released)
    with pytest.raises(CheckpointError, match="is not there"):
        load_released("nowhere.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skip_step": None}, "args lack skip_step"),
        ({"d_patch_size": None}, "args lack d_patch_size"),
        ({"action_steps": 0}, r"cannot act\. It can be a training\.init"),
        ({"predict_horizon": 7}, "imagines 2 channels of latents"),
        ({"num_heads": 0}, "args.model is 'DiT-tiny/2'; expected DiT-S/2"),
        ({"num_heads": 0, "model": None}, "args.model is None; expected DiT-S/2"),
    ],
)
def test_a_checkpoint_that_cannot_act_says_why(released, change, message):
    weights, args = load_released(released)
    save_released(released, weights, args | change)
    with pytest.raises(CheckpointError, match=message):
        policy_from(released)


@pytest.mark.parametrize("lost", ["x_embedder.proj.weight", "y_embedder.embedding_table.weight", "blocks."])
def test_a_checkpoint_without_some_of_its_tensors_names_them(released, lost):
    weights, args = load_released(released)
    save_released(released, {name: w for name, w in weights.items() if not name.startswith(lost)}, args)
    with pytest.raises(CheckpointError, match=f"lacks {lost}"):
        policy_from(released)


def test_a_policy_that_pad_has_no_words_for_is_not_saved_as_one(released):
    policy = policy_from(released)
    policy.normalizer.stats["arm"]["action"]["center"][0] = 0.5
    policy.spec.action["kind"] = "delta"
    with pytest.raises(CheckpointError, match="statistics other than one factor and no 'delta' actions"):
        args_of(policy)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("diffusion", "predict_action", "velocity", "diffusion.predict_action='velocity'"),
        ("diffusion", "predict_future", "clean", "diffusion.predict_future='clean'"),
        ("diffusion", "schedule", "cosine", "diffusion.schedule='cosine'"),
        ("diffusion", "train_steps", 100, "diffusion.train_steps=100"),
        ("diffusion", "future", "change", "diffusion.future='change'"),
        ("model", "mlp_ratio", 2.0, "mlp_ratio=2"),
        ("spec", "obs_steps", 2, "2 observed frames"),
        ("spec", "future_offsets_s", [0.2, 0.4, 0.6], "frames at .* beside poses each 0.05 s"),
        ("spec", "dt_s", 0.05625, "actions each 4.5 steps"),
    ],
)
def test_what_pads_code_would_misread_is_not_given_to_it(released, part, key, value, message):
    policy = policy_from(released)
    setattr(policy.spec if part == "spec" else getattr(policy.config, part), key, value)
    with pytest.raises(CheckpointError, match=message):
        args_of(policy, step_s=0.0125)


@pytest.mark.parametrize("step_s", [1e9, -0.0125])
def test_a_step_is_no_longer_than_the_time_between_poses(released, step_s):
    with pytest.raises(CheckpointError, match="actions each .* steps"):
        args_of(policy_from(released), step_s)


@pytest.mark.parametrize(
    "content",
    [
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "<!DOCTYPE html>",
        "Repository not found",
        "J",
    ],
)
def test_a_failed_download_is_not_called_dangerous(tmp_path, content):
    (tmp_path / "dit.pt").write_text(content)
    with pytest.raises(CheckpointError, match=r"dit\.pt is damaged.*Copy it again"):
        load_released(tmp_path / "dit.pt")


@pytest.mark.parametrize("args", ["null", "[]"])
def test_metadata_that_is_no_args_is_named(tmp_path, args):
    save_file({"x": torch.ones(1)}, tmp_path / "w.safetensors", {"args": args})
    with pytest.raises(CheckpointError, match="expected a Namespace or a dict"):
        load_released(tmp_path / "w.safetensors")


@pytest.mark.parametrize("family", ["pad", "padpolicy"])
def test_the_file_of_our_own_policy_is_no_start(released, family):
    policy = policy_from(released) if family == "pad" else small_policy()
    save_released(released.with_name("model.safetensors"), policy.state_dict(), {})
    with pytest.raises(CheckpointError, match="give the policy's folder"):
        start_from(policy, released.with_name("model.safetensors"))


def test_only_the_family_pad_starts_from_released_weights(released):
    with pytest.raises(CheckpointError, match="holds weights of DiT or PAD: train with family=pad"):
        start_from(small_policy(), released)


def test_imagenet_weights_start_pad_frame_by_frame(released):
    """PAD that has not learned since answers k equal frames as DiT answers one of which k times as much enters."""
    torch.manual_seed(0)
    dit = PadNetwork(32, 2, 4, nn.Embedding(11, 32), side=8, patch=2, channels=4)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    dit.y_embedder["embedding_table"].weight.data.zero_()  # PAD's text starts as zero
    torch.save(dit.state_dict(), released.with_name("dit.pt"))
    policy = policy_from(released)
    pad = policy.network
    fresh = start_from(policy, released.with_name("dit.pt"))
    heads = [f"final_layer.{kind}_{part}" for kind in "ad" for part in ("linear", "adaLN_modulation.1")]
    layers = ["a_embedder", "d_embedder.proj", *heads]
    expected = {f"network.{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert set(fresh) == expected | {"network.a_pos_embed", "network.d_pos_embed"}
    with torch.no_grad():
        frame, now, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([5.0, 700.0])
        nothing = {"pose_BTA": torch.zeros(2, 1, 16), "depth_BCSS": torch.zeros(2, 4, 8, 8)}
        got = pad.predict(torch.cat([frame] * 3 + [now], 1), t, torch.randn(2, 8), **nothing)[""]
        dit.x_embedder["proj"].weight.data *= 3
        noise, variance = dit.predict(frame, t, torch.zeros(2, dtype=torch.long))[""].chunk(2, 1)
    assert torch.allclose(got, torch.cat([noise] * 3 + [variance] * 3, 1), atol=1e-5)


def test_a_start_from_imagenet_without_its_patches_names_them(released):
    path = released.with_name("dit.pt")
    torch.save({"y_embedder.embedding_table.weight": torch.ones(11, 32)}, path)
    with pytest.raises(CheckpointError, match="lacks x_embedder.proj.weight, final_layer.linear.weight"):
        start_from(policy_from(released), path)


def test_released_weights_start_only_what_they_fit(released):
    policy = policy_from(released)
    other = {name: torch.zeros(3) for name in weights_of(policy)}
    torch.save(other, released.with_name("other.pt"))
    with pytest.raises(CheckpointError, match="none of its blocks fits a network of width 32"):
        start_from(policy, released.with_name("other.pt"))


def test_pad_paper_starts_from_imagenet_trains_and_acts(tmp_path, monkeypatch):
    use_exact_encoders(monkeypatch.setattr)
    dit = PadNetwork(32, 1, 2, nn.Embedding(11, 32), side=12, patch=2, channels=4)
    with torch.no_grad():
        dit.blocks[0].attn.qkv.weight.fill_(0.125)
    torch.save(dit.state_dict(), tmp_path / "dit.pt")
    short = ["training.steps=2", "training.batch_size=2", "training.threads=1", "training.precision=fp32"]
    short += ["training.validate_every=0", "training.imagine_every=0", "data.workers=0", "data.cache_latents=false"]
    short += ["diffusion.steps=2", "evaluation.num_envs=1", "evaluation.env_workers=0", "env.max_steps=6"]
    short += ["evaluation.episodes_per_task=1", "evaluation.videos=0", "env.tasks=[touch_red_cube]"]
    small = ["model.width=32", "model.depth=1", "model.heads=2", f"training.init={tmp_path}/dit.pt"]
    data = "data.path=shipped:sample/demonstrations.zarr"
    cfg = config.load("train", ["experiment=pad_paper", data, f"out={tmp_path}/run", *short, *small])
    policy = load_policy(train(cfg))
    assert isinstance(policy.network, PadNetwork) and policy.spec.action_dim == 5
    block, head = policy.network.blocks[0], policy.network.final_layer
    assert (block.attn.qkv.weight == 0.125).all()  # where it started: behind gates that are still closed
    assert 0 < head.a_linear.weight.abs().max() < 1e-3  # two steps of 1e-4 away from zero
    report = run_evaluation(config.evaluation_of(cfg, f"{tmp_path}/eval"), policy)
    assert report.results["episodes"] == 1
    with pytest.raises(CheckpointError, match=r"frames at \[0\.4, 0\.8, 1\.2\] s beside poses each 0\.1 s"):
        args_of(policy)
