"""Diffusion Policy: its laws at tiny sizes, its published sizes, and its way through training and the closed loop."""

from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import pytest
import torch
from small import ACTION, CHUNK, PROPRIO, HashEncoder, MeanEncoder, batch_of, robot_sample, small_policy
from tiny_run import use_exact_encoders

from padpolicy import config
from padpolicy.config import ConfigError, DiffusionConfig, EncodersConfig, EnvConfig, EvalConfig, ModelConfig
from padpolicy.control.planner import Request, blank, local_brain
from padpolicy.evaluation.run import run_evaluation
from padpolicy.model.diffusion_policy import Condition, TransformerNetwork, UnetNetwork
from padpolicy.model.resnet_eyes import KEYPOINTS, ResnetEye, spatial_softmax
from padpolicy.policy import PadPolicy
from padpolicy.spec import PolicyConfig
from padpolicy.training.loop import train

PIXELS = 40  # end as 2 x 2 places
FAMILIES = ["unet", "transformer"]


def tiny(family, model=None, spec=None, **diffusion):
    donor = small_policy()
    seen = {"cameras": ["front"], "depth_cameras": [], "future_cameras": [], "future_depth_cameras": []}
    about = dataclasses.replace(donor.spec, **{**seen, "image_size": PIXELS, "obs_steps": 2, **(spec or {})})
    size = ModelConfig(**{"family": family, "eyes": "resnet", "width": 16, "depth": 2, "heads": 2, **(model or {})})
    noise = DiffusionConfig(**{"modes": {"policy": 1.0}, "text_dropout": 0.0, **diffusion})
    torch.manual_seed(0)
    settings = PolicyConfig(about, size, noise, EncodersConfig(text_tokens=5))
    return PadPolicy(settings, donor.normalizer, donor.depth_scale, MeanEncoder(), HashEncoder())


def sample(index, text="lift the cube", without=()):
    """A sample of two observation steps; `without` names fields that it lacks."""
    rng, made = np.random.default_rng(index), robot_sample(index, text)
    fields = {
        "obs.rgb_front": rng.integers(0, 256, (2, PIXELS, PIXELS, 3)).astype(np.uint8),
        "obs.proprio": rng.standard_normal((2, PROPRIO)).astype(np.float32),
        "action": made.fields["action"],
    }
    made.fields = {name: x for name, x in fields.items() if name not in without}
    made.is_pad = {"obs": np.zeros(2, bool), "action": made.is_pad["action"]}
    made.time_s = {"obs": np.array([-0.1, 0], np.float32), "action": made.time_s["action"]}
    return made


def mixed():
    return batch_of(
        sample(0), sample(1, None), sample(2, without=["obs.rgb_front"]), sample(3, "push", without=["obs.proprio"])
    )


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request):
    made = tiny(request.param).eval()
    with torch.no_grad():  # a fresh transformer hardly listens
        for name, parameter in made.network.named_parameters():
            if not name.startswith("condition."):
                parameter.normal_(std=0.2)
    return made


@torch.no_grad()
def answer(policy, batch, x, tau, has_prefix=None):
    context = policy.network.context(policy.fields.observed(batch))
    return policy.network.denoise("policy", context, {"action": x}, {"action": tau}, {}, None, has_prefix)["action"]


def noised(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, CHUNK, ACTION, generator=generator), torch.rand(rows, generator=generator)


# The eyes


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 4), (1, 2), (1, 1)])
def test_a_bright_spot_is_where_it_is(row, column):
    x = torch.zeros(2, 3, 3, 5)
    x[1, 2, row, column] = 100.0
    places = spatial_softmax(x)
    assert torch.allclose(places[1, 2], torch.tensor([column / 2 - 1, row - 1.0]), atol=1e-6)
    assert torch.allclose(places[0], torch.zeros(3, 2), atol=1e-6)  # nothing stands out: the middle


def test_an_eye_has_no_batch_in_its_norms():
    with torch.device("meta"):
        eye = ResnetEye()
    kinds = [type(module).__name__ for module in eye.modules()]
    assert kinds.count("GroupNorm") == kinds.count("Conv2d") - 1 == 20 and "BatchNorm2d" not in kinds
    assert {m.num_channels // m.num_groups for m in eye.modules() if isinstance(m, torch.nn.GroupNorm)} == {16}


def test_a_missing_camera_is_zeros(policy):
    condition = policy.network.condition
    with torch.no_grad():
        features, _ = condition(policy.fields.observed(mixed()))
        alone, _ = condition(policy.fields.observed(mixed().select(torch.tensor([2]))))  # no sample has a picture
    assert features.shape == (4, 2, 64 + PROPRIO) and features[[0, 1, 3], :, :64].abs().sum() > 0
    assert not features[2, :, :64].any() and not features[3, :, 64:].any()
    assert torch.equal(alone[0], features[2])


# Both networks


def test_a_samples_loss_does_not_depend_on_its_batch():
    for family, objective in (
        ("unet", {"objective": "ddpm", "predict_action": "noise", "learn_variance": True, "train_steps": 50}),
        ("transformer", {"objective": "flow"}),
    ):
        policy, batch = tiny(family, **objective, action_draws=2, prefix_share=0.5, prefix_max_steps=3), mixed()
        together = policy.loss(batch).value["action"]
        assert together.min() > 0
        for row in range(len(batch)):
            alone = policy.loss(batch.select(torch.tensor([row]))).value["action"]
            assert torch.allclose(alone[0], together[row], atol=1e-5), (family, row)


def test_draws_of_one_observation_are_separate_calls(policy):
    batch, (x, tau) = batch_of(sample(0), sample(1, None)), noised(6)
    together = answer(policy, batch, x, tau)
    assert together.shape == x.shape
    for draw in range(3):
        assert torch.allclose(answer(policy, batch, x[draw::3], tau[draw::3]), together[draw::3], atol=1e-5)


def test_words_pictures_and_both_observation_steps_change_the_answer(policy):
    x, tau = noised(1)
    samples = [sample(0), sample(0, "push it"), sample(0, None), sample(0)]
    samples[3].fields["obs.rgb_front"][0] = 0
    answers = [answer(policy, batch_of(one), x, tau) for one in samples]
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(answers[i], answers[j], atol=1e-5), (i, j)


def test_who_acts_later_is_not_known_to_who_acts_earlier():
    batch, (x, tau) = batch_of(sample(0, without=["obs.rgb_front"])), noised(1)
    other = x.clone()
    other[:, 3:] = 5.0
    for family, causal in (("transformer", True), ("unet", False)):  # a convolution sees both ways
        policy = tiny(family, spec={"cameras": []}).eval()
        one, two = answer(policy, batch, x, tau), answer(policy, batch, other, tau)
        assert torch.allclose(one[:, :3], two[:, :3], atol=1e-6) == causal
        assert not torch.allclose(one[:, 3:], two[:, 3:], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_horizon_keeps_its_shape(family):
    condition = Condition([], 3, 8, 16)
    networks = {
        "unet": UnetNetwork(condition, 100, 2, ACTION, 16, out_factor=2),
        "transformer": TransformerNetwork(condition, 100, 2, 17, ACTION, 16, 1, 2, 4.0, out_factor=2),
    }
    told = {"unet": torch.randn(2, 2 * 3 + 16), "transformer": torch.randn(2, 3, 16)}[family]
    for steps in range(5, 18):
        y = networks[family].actions(told, torch.randn(2, steps, ACTION), torch.tensor([0.0, 99.0]))
        assert y.shape == (2, steps, 2 * ACTION) and y.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_batch_can_be_learned_by_heart(family):
    policy = tiny(family, spec={"cameras": []}, objective="ddpm", predict_action="noise", train_steps=100)
    batch = batch_of(*(sample(i, without=["obs.rgb_front"]) for i in range(4)))
    optimizer, losses = torch.optim.Adam(policy.parameters(), lr=1e-2), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = policy.loss(batch).total()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10, losses


def test_published_sizes():
    """Counted in a transcription of the released code: 2 cameras, 2 steps, 9 numbers of proprioception, 10 actions."""

    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        condition = Condition(["agent", "hand"], 9, 512, said=64)
        assert count(condition.eyes["agent"]) == 11_197_088  # 11.2 M
        for width, published in ((256, 66_923_402), (512, 255_612_042)):  # 67 M, 256 M
            unet = UnetNetwork(condition, 100, 2, 10, width, out_factor=1)
            words = 64 * 2 * sum(2 * width * factor for factor in (1, 2, 4, 4, 2, 1))  # what FiLM hears of the sentence
            assert count(unet) - count(condition) == published + words
        condition = Condition(["agent", "hand"], 9, 512, said=256)
        transformer = TransformerNetwork(condition, 100, 2, 10, 10, 256, 8, 4, 4.0, out_factor=1)
        assert count(transformer) - count(condition) == 8_997_642 + 256  # 9 M, and the place of the words


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        ({"eyes": "latents"}, {}, r"model.eyes='latents': model.family=unet has 'resnet'"),
        ({"width": 12}, {}, r"model.width=12: model.family=unet takes multiples of 8"),
        ({}, {"image_size": 32}, r"data.image_size=32: model.eyes=resnet sees nothing below 33"),
        ({}, {"future_cameras": ["front"]}, r"data.future_cameras=\['front'\]: model.family=unet sees rgb alone"),
        ({"text": "tokens"}, {}, r"model.text='tokens': model.family=unet hears the pooled sentence"),
        ({"prefix_sum": True}, {}, r"model.prefix_sum=True is for model.family=padpolicy; it is 'unet'"),
        ({"conditioning": "adaln"}, {}, r"model.conditioning='adaln' is for model.family=pad; it is 'unet'"),
    ],
)
def test_what_has_no_place_is_refused(model, spec, message):
    with pytest.raises(ConfigError, match=message):
        tiny("unet", model, spec)


# The same data, loop, evaluator and controller


@pytest.mark.parametrize(("family", "cameras"), [("unet", "[front]"), ("transformer", "[]")])
def test_it_trains_is_loaded_plans_and_acts_without_imagining(family, cameras, tmp_path, monkeypatch):
    use_exact_encoders(monkeypatch.setattr)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # an eye is 200 MB of checkpoint
    settings = ["experiment=tiny", f"family={family}", f"data.cameras={cameras}", f"out={tmp_path / 'run'}"]
    smaller = [
        "model.width=16",
        "model.depth=1",
        f"data.image_size={PIXELS}",
        "training.steps=2",
        "training.batch_size=2",
        "training.ema=0",
        "data.val_fraction=0",
    ]
    train(config.load("train", [*settings, *smaller]))
    brain = local_brain(str(tmp_path / "run"), "cpu", 0)
    policy = brain.policy
    shutil.rmtree(tmp_path / "run")
    assert policy.config.model.family == family and policy.acts_in == "policy"
    assert policy.noise_shapes("policy") == {"action": (8, policy.spec.action_dim)}

    assert not brain.imagines
    plan = brain(Request(blank(brain.spec), observed_at_s=0.0, number=0))
    assert plan.chunk_TA.shape == (8, policy.spec.action_dim) and np.isfinite(plan.chunk_TA).all()

    env = EnvConfig(id="padpolicy/Tabletop-v0", robot="tabletop", cameras=["front"], max_steps=8)
    cfg = EvalConfig(checkpoint="", out="", env=env, tasks=["touch_red_cube"], episodes_per_task=1, num_envs=1, steps=1)
    cfg.env_workers, cfg.exec_steps, cfg.videos = 0, 8, 1
    assert cfg.imagine
    found = run_evaluation(cfg, policy)
    assert found.results["episodes"] == 1
    assert len(found.films) == 1 and found.films[0].strip is None and not found.films[0].imagined


@pytest.mark.parametrize(("stages", "side", "weights"), [(1, 24, 163_744), (2, 12, 691_360), (4, 3, 11_197_088)])
def test_fewer_stages_make_a_smaller_eye_of_finer_maps(stages, side, weights):
    with torch.device("meta"):
        eye = ResnetEye(stages)
        assert eye.points(eye.body(torch.zeros(1, 3, 96, 96))).shape == (1, KEYPOINTS, side, side)
    assert sum(p.numel() for p in eye.parameters()) == weights
