"""Guidance: how prompts are combined, and its laws in a whole policy."""

from __future__ import annotations

import pytest
import torch
from small import batch_of, robot_sample, small_policy

from padpolicy.diffusion.guidance import Guidance

FUTURE = "future.latent_front"


def test_guidance_combines_prompts():
    out = torch.tensor([[1.0], [3.0], [0.0], [2.0], [6.0], [1.0]])  # two samples: own, prompt, null
    guidance = Guidance(2.0, prompts=[("push", 3.0)])
    assert guidance.texts("lift") == ["lift", "push", None] and guidance.copies == 3
    assert torch.allclose(guidance.combine(out), torch.tensor([[5.0], [9.0]]))
    assert Guidance().plain and Guidance().texts("lift") == ["lift"]
    assert Guidance(2.0, negative="drop").texts("lift") == ["lift", "drop"]
    with pytest.raises(ValueError, match="sum to 0"):
        Guidance(2.0, prompts=[("push", -1.0)])


def test_weights_of_one_and_zero_are_the_first_prompt_alone():
    own, other, null = torch.randn(3, 1, 4, 5)
    alone = Guidance(2.5).combine(torch.cat([own, null]))
    assert torch.allclose(Guidance(2.5, prompts=[("push", 0.0)]).combine(torch.cat([own, other, null])), alone)
    assert torch.allclose(Guidance(1.0, prompts=[("push", 0.0)]).combine(torch.cat([own, other, null])), own, atol=1e-6)


def test_actions_and_futures_are_guided_apart():
    own, null = torch.randn(2, 1, 4)
    out, guidance = torch.cat([own, null]), Guidance(1.0, future_scale=3.0)
    assert guidance.copies == 2 and Guidance(1.0, future_scale=1.0).plain
    assert torch.allclose(guidance.combine(out), own, atol=1e-6)
    assert torch.allclose(guidance.combine(out, future=True), null + 3 * (own - null))
    assert torch.allclose(Guidance(3.0).combine(out, future=True), null + 3 * (own - null))


def test_what_is_not_guided_is_what_the_prompts_say():
    out = torch.randn(6, 2, 8, 3)  # two samples: own, prompt, null
    own, other, null = out.unflatten(0, (2, 3)).unbind(1)
    said = 0.75 * own + 0.25 * other
    some = Guidance(4.0, prompts=[("push", 1 / 3)]).combine(out, axis=2, guided=3)
    assert torch.allclose(some[:, :, :3], (null + 4 * (said - null))[:, :, :3], atol=1e-6)
    assert torch.allclose(some[:, :, 3:], said[:, :, 3:])


def noise(policy, mode: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f: torch.randn(1, *shape, generator=generator) for f, shape in sorted(policy.noise_shapes(mode).items())}


@pytest.mark.parametrize("learned", [False, True])
def test_three_of_four_channels_of_the_future_are_guided(learned):
    settings = {"objective": "ddpm", "learn_variance": True} if learned else {}
    policy = small_policy(**settings)
    obs, start = batch_of(robot_sample(0)), noise(policy, "video")

    def imagine(guidance):
        return policy.predict(obs, mode="video", guidance=guidance, noise=start, steps=1)

    plain, some, all_of_it = imagine(1.0), imagine(Guidance(3.0, channels=3)), imagine(3.0)
    a, b, c = (p.future_latent["front"] for p in (plain, some, all_of_it))
    assert torch.allclose(b[:, :, :3], c[:, :, :3], atol=1e-5) and torch.allclose(b[:, :, 3], a[:, :, 3], atol=1e-5)
    assert not torch.allclose(c[:, :, 3], a[:, :, 3], atol=1e-3)
    assert torch.equal(some.future_depth["front"], all_of_it.future_depth["front"])


def test_the_futures_scale_leaves_actions_alone_and_is_configured():
    policy = small_policy(guidance_future=3.0, guidance_channels=2)
    obs, start = batch_of(robot_sample(0)), noise(policy, "joint")
    plain = policy.predict(obs, mode="joint", guidance=1.0, noise=start)
    asked = policy.predict(obs, mode="joint", guidance=Guidance(1.0, future_scale=3.0, channels=2), noise=start)
    configured = policy.predict(obs, mode="joint", noise=start)
    assert torch.equal(configured.future_latent["front"], asked.future_latent["front"])
    assert torch.allclose(configured.action, plain.action, atol=1e-5)
    assert not torch.allclose(configured.future_latent["front"], plain.future_latent["front"], atol=1e-3)
    alone = policy.predict(obs, mode="policy", noise=start)  # nothing is imagined, nothing guided: one row
    assert torch.equal(alone.action, policy.predict(obs, mode="policy", guidance=1.0, noise=start).action)
