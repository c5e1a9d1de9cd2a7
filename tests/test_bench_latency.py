"""`padpolicy bench latency` on tiny networks, and what makes a policy act faster. No times are asserted."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import pytest
import torch
from small import batch_of, robot_sample, small_policy

from padpolicy import cli, config
from padpolicy.bench.latency import (
    Setting,
    copy_bandwidth,
    settings_of,
    time_plans,
    trunk_policy,
    watched,
    weights_read,
)
from padpolicy.bench.run import measured_size, random_batch
from padpolicy.encoders import text as text_module
from padpolicy.encoders.image import ImageEncoder
from padpolicy.encoders.text import TextEncoder

OURS, PAD = Setting("ours", "policy", 3), Setting("PAD", "joint", 4, keep=False)


def noise_of(policy, mode: str, rows: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(rows, *shape, generator=generator) for name, shape in policy.noise_shapes(mode).items()}


def test_latency_reports_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "latency.json"
    assert cli.main(["bench", "latency", "recipe=tiny", "plans=2", "steps=[1,2]", "pad_steps=3", f"out={file}"]) == 0
    results = json.loads(file.read_text())
    assert [row["name"] for row in results["settings"]] == ["ours, 1 step", "ours, 2 steps", "PAD's settings, 3 steps"]
    pad = results["settings"][-1]["ms"]["total"]["p50"]
    for row in results["settings"]:
        assert set(row["ms"]) == {"encode", "context", "step", "post", "total", "wall"}
        assert all(0 <= ms["p50"] <= ms["p95"] <= ms["p99"] for ms in row["ms"].values())
        assert row["times_as_fast_as_pad"] == pytest.approx(pad / row["ms"]["total"]["p50"])
    assert {"commit", "torch", "cpu", "device", "threads", "clock", "seed", "plans", "policy"} <= set(results)
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("ours, 2 steps", "PAD's settings", "each, with context", "total, wall"))


def test_stages_are_the_whole_plan_and_settings_take_turns() -> None:
    """A clock that moves by 1 s whenever it is read: each stage has one reading at its end."""
    policy, ticks = small_policy(), itertools.count()
    found = time_plans(policy, batch_of(robot_sample(0)), [OURS, PAD], 2, 1, lambda: float(next(ticks)))
    for setting, stages in found.items():
        assert stages.encode == stages.context == stages.post == [1000.0] * 2
        assert stages.step == [1000.0] * 2 * setting.steps
        assert stages.total == [1000.0 * (setting.steps + 3)] * 2
    # a plan reads the clock at its start and end, and at the end of each other stage; the first round is warm-up
    assert next(ticks) == 3 * sum(setting.steps + 4 for setting in (OURS, PAD))


def test_a_plan_of_two_modes_has_the_stages_of_both() -> None:
    policy, ticks = (
        small_policy(modes={"policy": 0, "joint": 0, "forward": 0, "inverse": 1, "video": 1}),
        itertools.count(),
    )
    setting = Setting("susie", policy.acts_in, 4)
    (stages,) = time_plans(policy, batch_of(robot_sample(0)), [setting], 1, 0, lambda: float(next(ticks))).values()
    assert setting.mode == "video_inverse" and stages.step == [1000.0] * 8
    assert stages.encode == stages.context == [2000.0] and stages.post == [1000.0] and stages.total == [13000.0]


def test_a_family_without_a_future_is_not_timed_as_pad() -> None:
    policy, cfg = small_policy(steps=4), config.load("bench", ["what=latency", "steps=[0]"])
    policy.config.model.family, policy.network.modes = "unet", {"policy": policy.network.modes["policy"]}
    assert settings_of(cfg, policy) == [Setting("unet, 4 steps", "policy", 4)]


@pytest.mark.parametrize(("setting", "contexts"), [(OURS, 1), (PAD, 4)])
def test_pads_settings_compute_the_context_in_every_step_and_answer_alike(setting, contexts, monkeypatch) -> None:
    policy, calls = small_policy(), []
    obs, noise = batch_of(robot_sample(0)), noise_of(policy, setting.mode)
    expected = policy.predict(obs, mode=setting.mode, steps=setting.steps, noise=noise)
    trunk, context = policy.network.trunk, policy.network.trunk.context
    monkeypatch.setattr(trunk, "context", lambda *args: calls.append(1) or context(*args))
    with watched(policy.network, setting.keep, lambda: 0.0):
        got = policy.predict(obs, mode=setting.mode, steps=setting.steps, noise=noise)
    assert len(calls) == contexts
    assert torch.equal(got.action, expected.action)
    assert not {"context", "denoise"} & set(vars(policy.network))  # as it was


def test_the_policys_own_steps_and_no_pad() -> None:
    cfg = config.load("bench", ["what=latency", "steps=[0,4,1]", "pad_steps=0"])
    policy = small_policy(steps=4)
    assert settings_of(cfg, policy) == [Setting("ours, 4 steps", "policy", 4), Setting("ours, 1 step", "policy", 1)]


def test_a_step_reads_the_trunk_and_the_way_of_the_actions_in_and_out() -> None:
    policy, obs = small_policy(), batch_of(robot_sample(0))
    read = [weights_read(policy, obs, Setting("", "policy", steps)) for steps in (1, 2, 7)]
    network = policy.network
    parts = (network.trunk, network.tau, network.tokens.action_in, network.tokens.heads["action"])
    assert read[1] - read[0] == sum(p.nbytes for part in parts for p in part.parameters())
    assert read[2] - read[0] == 6 * (read[1] - read[0])
    anew = [weights_read(policy, obs, Setting("", "joint", steps, keep=False)) for steps in (1, 2)]
    assert anew[1] - anew[0] > read[1] - read[0] + sum(p.nbytes for p in network.trunk.blocks[0].parameters())


def test_bandwidth_counts_reading_and_writing() -> None:
    assert copy_bandwidth(torch.device("cpu"), 1000, itertools.count(0.0, 0.5).__next__) == 4000.0


def test_a_trunk_has_dits_size() -> None:
    recipe = config.load("train", ["experiment=tabletop", "out=x", "data.path=x"])
    policy, about = trunk_policy("S", 64, recipe, torch.device("cpu"))
    blocks = policy.network.trunk.blocks
    assert (len(blocks), blocks[0].attn.qkv.in_features, blocks[0].attn.heads) == (12, 384, 6)
    size, actions = measured_size(policy, random_batch(policy, 1, targets=True))
    assert size.noised - actions == 16 + 16  # 64 pixels are 8 x 8 latents, 4 x 4 tokens; and 4 x 4 tokens of depth
    assert about == "untrained DiT-S/2, 12 x 384, 64 px"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["speed"], "what='speed': expected one of 'ratios', 'latency'"),
        (["latency", "steps=[4,-1]"], "at least 0"),
        (["latency", "trunk=M"], "trunk='M': expected one of '', 'S', 'B', 'L', 'XL'"),
        (["latency", "image_size=100"], "multiples of 32"),
        (["latency", "repeats=3"], "repeats is a setting of padpolicy bench ratios, not of latency"),
        (["ratios", "trunk=S"], "trunk is a setting of padpolicy bench latency, not of ratios"),
        (["family", "out=x", "checkpoint=tabletop"], "checkpoint is a setting of padpolicy bench ratios and latency"),
    ],
)
def test_settings_that_cannot_be_used(settings, message, capsys) -> None:
    assert cli.main(["bench", *settings]) == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- acting faster


def assert_prepared_answers_alike() -> None:
    plain, prepared = small_policy(), small_policy().prepare(compile=True)
    for mode, text in (("policy", "lift"), ("policy", "lift the red cube"), ("joint", None)):
        obs, noise = batch_of(robot_sample(0, text)), noise_of(plain, mode)
        a, b = (policy.predict(obs, mode=mode, steps=3, noise=noise) for policy in (plain, prepared))
        assert torch.allclose(a.action, b.action, atol=1e-5)
        for camera in a.future_latent:
            assert torch.allclose(a.future_latent[camera], b.future_latent[camera], atol=1e-4)


def test_a_compiled_policy_answers_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and run as a graph; with the default backend, which takes longer to compile, in the next test."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    assert_prepared_answers_alike()


@pytest.mark.slow
def test_a_policy_compiled_by_the_default_backend_answers_alike() -> None:
    assert_prepared_answers_alike()


def test_a_compiled_policy_has_few_lengths_of_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    policy = small_policy()
    policy.config.encoders.text_tokens = 12
    lengths = {}
    for prepared in (False, True):
        policy = policy.prepare(compile=prepared)
        texts = [" ".join("abcdefghij"[:n]) for n in (1, 8, 9)]
        observed = [policy.fields.observed(batch_of(robot_sample(0, text))) for text in texts]
        lengths[prepared] = [x.text_tokens.shape[1] for x in observed]
    assert lengths == {False: [1, 8, 9], True: [8, 8, 12]}


def test_the_kept_instructions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "CACHED", 2)
    encoder = TextEncoder.load("shipped:text")
    texts = ["open the drawer", "touch the red cube", "close the drawer"]
    first = [encoder.encode([text], 24).tokens for text in texts]
    assert list(encoder._cache) == texts[1:]
    assert all(torch.equal(encoder.encode([text], 24).tokens, a) for text, a in zip(texts, first, strict=True))


def test_an_image_encoder_in_bfloat16(tmp_path: Path) -> None:
    encoder = ImageEncoder.load("shipped:vae")
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    picture = torch.stack([8 * y, 8 * x, 4 * (y + x)], -1).to(torch.uint8)
    exact = encoder.encode(picture)
    exact_back = encoder.decode(exact)
    encoder.to_dtype(torch.bfloat16)
    rounded = encoder.encode(picture)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert (rounded - exact).square().mean() < 1e-3 * exact.square().mean()
    assert (encoder.decode(rounded).float() - exact_back.float()).abs().mean() < 3  # of 255
    with pytest.raises(ValueError, match="rounded to torch.bfloat16"):
        encoder.save(tmp_path)
