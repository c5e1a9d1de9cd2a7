"""The laws of the policy, exact where the issue of equality is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import ACTION, CHUNK, SIZE, batch_of, robot_sample, small_policy, video_sample

from padpolicy.diffusion.guidance import Guidance
from padpolicy.diffusion.sampler import euler

ALL_MODES = {"policy": 1.0, "joint": 1.0, "forward": 1.0, "inverse": 1.0}


def mixed(step: int = 3):
    return batch_of(
        robot_sample(0),
        robot_sample(1, None),
        video_sample(2),
        video_sample(3, "a kitchen"),
        robot_sample(4),
        step=step,
    )


def gradients(policy, batch):
    policy.zero_grad()
    terms = policy.loss(batch)
    terms.total().backward()
    return terms, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("coupling", ["blind", "pad", "full"])
def test_nan_in_an_absent_field_changes_no_loss_and_no_gradient(coupling):
    policy = small_policy(coupling=coupling, modes=ALL_MODES)
    clean = mixed()
    poisoned = mixed()
    for name, there in poisoned.has.items():
        if name != "text" and poisoned.fields[name].is_floating_point():
            poisoned.fields[name][~there] = float("nan")
    assert any(torch.isnan(x.float()).any() for x in poisoned.fields.values())
    one, grad_one = gradients(policy, clean)
    two, grad_two = gradients(policy, poisoned)
    for name in one.value:
        assert torch.equal(one.value[name], two.value[name])
    assert grad_one.keys() == grad_two.keys()
    for name in grad_one:
        assert torch.equal(grad_one[name], grad_two[name]), name


@pytest.mark.parametrize("step", range(6))
def test_a_samples_loss_in_a_mixed_batch_is_its_loss_alone(step):
    policy = small_policy(modes=ALL_MODES, prefix_share=0.5, prefix_max_steps=3, obs_dropout=0.3)
    batch = mixed(step)
    together = policy.loss(batch)
    for row in range(len(batch)):
        alone = policy.loss(batch.select(torch.tensor([row])))
        for name in together.value:
            assert alone.valid[name][0] == together.valid[name][row]
            assert torch.allclose(alone.value[name][0], together.value[name][row], atol=1e-5), (row, name)


def test_counts_are_known_before_the_network_runs():
    """Whatever has a loss at all counts, and nothing else: random weights leave no error of exactly 0."""
    policy = small_policy(modes=ALL_MODES, prefix_share=0.5)
    for step in range(5):
        batch, counted = mixed(step), {"action": 0, "rgb": 0, "depth": 0}
        for row, mode in enumerate(policy.draw_modes(batch)):
            for name, value in policy._loss_in_mode(mode, batch.select(torch.tensor([row]))).items():
                counted[name] += int(value > 0)
        assert policy.valid_counts(batch) == counted


def test_one_observation_is_dropped_and_never_the_last():
    """Which one does not depend on the fields that only other samples of the batch have."""
    policy, dropped = small_policy(obs_dropout=0.5), set()
    film = video_sample(1)
    film.fields = {name: x for name, x in film.fields.items() if not name.startswith("obs.") or name == "obs.rgb_front"}
    for step in range(60):
        alone, together = batch_of(robot_sample(0)), batch_of(robot_sample(0), film)
        alone.step = together.step = step
        has, mixed_has = policy._drop(alone).has, policy._drop(together).has
        gone = [name for name in alone.has if name.startswith("obs.") and not has[name][0]]
        assert gone == [name for name in alone.has if name.startswith("obs.") and not mixed_has[name][0]]
        assert len(gone) <= 1 and mixed_has["obs.rgb_front"][1]
        dropped |= {*gone}
    assert dropped == {"obs.rgb_front", "obs.rgb_wrist", "obs.depth_front", "obs.proprio"}


@pytest.mark.parametrize("times", ["independent", "shared", "future_noisier"])
def test_the_actions_time_has_its_law_in_joint_whatever_the_futures_has(times):
    policy = small_policy(tau_law="uniform", times=times)
    batch = batch_of(*(robot_sample(i) for i in range(500)))
    tau = policy._draw_tau("joint", batch, 4)
    assert abs(tau["action"].mean() - 1 / 2) < 0.03 and abs(tau["action"].std() - 12**-0.5) < 0.02
    expected = {"independent": 1 / 2, "shared": 1 / 2, "future_noisier": 2 / 3}[times]
    assert abs(tau["future_rgb"].mean() - expected) < 0.03
    assert (tau["future_rgb"] >= tau["action"]).all() == (times != "independent")


def test_a_modality_without_a_valid_sample_costs_exactly_nothing():
    policy = small_policy(modes={"policy": 1.0})
    terms = policy.loss(batch_of(robot_sample(0), robot_sample(1)))
    assert terms.value["rgb"].sum() == 0 and not terms.valid["rgb"].any()
    assert terms.total() == terms.value["action"].mean()


def test_padded_steps_have_no_loss():
    policy = small_policy(modes={"policy": 1.0})
    one, two = robot_sample(2), robot_sample(2)
    pad = two.is_pad["action"]
    assert pad.any()
    one.is_pad["future"][:] = two.is_pad["future"][:] = True  # policy mode only
    out = policy.loss(batch_of(two)).value["action"]
    network = policy.network.denoise

    def shifted(*args):  # the network's answer on padded steps is made absurd
        answer = network(*args)
        answer["action"] = torch.where(torch.from_numpy(pad)[None, :, None], 1e6, answer["action"])
        return answer

    policy.network.denoise = shifted
    assert torch.equal(policy.loss(batch_of(two)).value["action"], out)


@pytest.mark.parametrize("kind", ["flow", "ddpm"])
def test_under_blind_the_actions_of_policy_are_those_of_joint(kind):
    policy = small_policy(coupling="blind", objective=kind)
    obs = batch_of(robot_sample(0), robot_sample(1, None), robot_sample(3, "push"))
    noise = joint_noise(3)
    alone = policy.predict(obs, mode="policy", noise=noise, steps=4)
    joint = policy.predict(obs, mode="joint", noise=noise, steps=4)
    assert torch.allclose(alone.action, joint.action, atol=1e-5)
    for coupling in ("pad", "full"):  # and where the action sees the future, they differ
        other = small_policy(coupling=coupling, objective=kind)
        alone, joint = (other.predict(obs, mode=mode, noise=noise, steps=4).action for mode in ("policy", "joint"))
        assert not torch.allclose(alone, joint, atol=1e-3)


def joint_noise(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"future.latent_front": (2, 4, 4, 4), "future.depth_front": (2, 8, 8), "action": (CHUNK, ACTION)}
    return {name: torch.randn(batch, *shape, generator=generator) for name, shape in shapes.items()}


def test_predict_is_stateless_and_a_batch_is_its_rows():
    policy = small_policy()
    samples = [robot_sample(0), robot_sample(1, None), video_sample(2, "look")]
    noise = joint_noise(3)
    together = policy.predict(batch_of(*samples), mode="joint", noise=noise)
    again = policy.predict(batch_of(*samples), mode="joint", noise=noise)
    assert torch.equal(together.action, again.action)
    for row, sample in enumerate(samples):
        alone = policy.predict(batch_of(sample), mode="joint", noise={n: x[row : row + 1] for n, x in noise.items()})
        assert torch.allclose(alone.action[0], together.action[row], atol=1e-5)
        assert torch.allclose(alone.future_latent["front"][0], together.future_latent["front"][row], atol=1e-5)


def test_the_words_and_the_pictures_matter():
    policy, noise = small_policy(), joint_noise(1)
    actions = [
        policy.predict(batch_of(sample), noise=noise).action
        for sample in (robot_sample(0), robot_sample(0, "push it"), robot_sample(0, None), robot_sample(0, seed=1))
    ]
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(actions[i], actions[j], atol=1e-3)


def test_guidance_of_scale_one_is_no_guidance():
    policy, noise = small_policy(), joint_noise(2)
    obs = batch_of(robot_sample(0), robot_sample(1, None))
    plain = policy.predict(obs, noise=noise).action
    assert torch.equal(policy.predict(obs, noise=noise, guidance=1.0).action, plain)
    weighted = policy.predict(obs, noise=noise, guidance=Guidance(1.0, prompts=[("push", 0.0)])).action
    assert torch.allclose(weighted, plain, atol=1e-5)
    stronger = policy.predict(obs, noise=noise, guidance=3.0).action
    assert not torch.allclose(stronger[0], plain[0], atol=1e-3)
    assert torch.allclose(stronger[1], plain[1], atol=1e-5)  # no words, nothing to guide by


@pytest.mark.parametrize("prefix_sum", [False, True])
def test_a_prefix_is_kept_to_the_last_bit_and_answered_to(prefix_sum):
    policy, noise = small_policy(model={"prefix_sum": prefix_sum}), joint_noise(2)
    obs = batch_of(robot_sample(0), robot_sample(1))
    prefix = torch.randn(2, CHUNK, ACTION, generator=torch.Generator().manual_seed(5))
    length = torch.tensor([0, 3])
    free = policy.predict(obs, noise=noise).action
    held = policy.predict(obs, noise=noise, prefix=prefix, prefix_len=length).action
    assert torch.equal(held[1, :3], prefix[1, :3])
    assert torch.allclose(held[0], free[0], atol=1e-5)
    assert not torch.allclose(held[1, 3:], free[1, 3:], atol=1e-3)
    prefix[:, 3:] = float("nan")  # what lies behind the prefix is never read
    assert torch.equal(policy.predict(obs, noise=noise, prefix=prefix, prefix_len=length).action, held)


def test_what_a_prefix_adds_up_to_is_told_to_the_actions_behind_it_alone():
    policy = small_policy(model={"prefix_sum": True})
    x, clean = torch.randn(2, CHUNK, ACTION), torch.zeros(2, CHUNK, dtype=torch.bool)
    clean[1, :3] = True
    told = policy.network.tokens.after(x, clean)
    assert not told[0].any() and not told[1, :3].any() and told[1, 3:].abs().min() > 0
    swapped = x.clone()
    swapped[1, :2], swapped[1, 3:] = x[1, :2].flip(0), 7.0  # the same sum, and what nobody knows yet
    torch.testing.assert_close(policy.network.tokens.after(swapped, clean), told)


def test_the_prefix_of_training_is_what_ran_and_the_rest_what_should_be_done():
    """A loss depends on `executed` in the prefix alone, and on `action` behind it alone."""
    policy = small_policy(modes={"policy": 1.0}, prefix_share=1.0, prefix_max_steps=1)
    change = torch.zeros(1, CHUNK, ACTION)

    def loss(executed: torch.Tensor, action: torch.Tensor) -> float:
        batch = batch_of(robot_sample(0))
        known = batch.fields["action"]
        batch.fields |= {"executed": known + executed, "action": known + action}
        batch.has["executed"] = batch.has["action"]
        return policy.loss(batch).value["action"].item()

    first, second = change.clone(), change.clone()
    first[:, 0], second[:, 1] = 1.0, 1.0
    plain = loss(change, change)
    assert loss(first, change) != plain and loss(change, second) != plain
    assert loss(second, change) == plain and loss(change, first) == plain


@pytest.mark.parametrize("kind", ["delta", "absolute"])
def test_a_strayed_prefix_is_followed_by_the_way_back(kind):
    """What deltas add up to is what the demonstration added up to, as soon as actions within -1..1 can reach it."""
    names = [f"joint {i}" for i in range(ACTION - 1)] + ["gripper"]
    action = {"kind": kind, "names": names, "dt_s": 0.1, "gripper": "continuous"}
    policy = small_policy(action=action, prefix_noise=0.2, prefix_share=1.0)
    batch = batch_of(robot_sample(0), robot_sample(1))
    known = torch.linspace(-0.5, 0.5, 2 * CHUNK * ACTION).reshape(2, CHUNK, ACTION)
    prefix = torch.zeros(2, CHUNK, dtype=torch.bool)
    prefix[:, :2] = True
    ran, rest = policy._strayed(batch, known, known, prefix)
    assert torch.equal(ran[:, 2:], known[:, 2:]) and torch.equal(ran[..., -1], known[..., -1])
    assert ((ran - known)[:, :2, :-1].abs() > 1e-4).all() and torch.equal(rest[:, :2], known[:, :2])
    executed = torch.cat([ran[:, :2], rest[:, 2:]], 1)
    if kind == "delta":
        assert not torch.equal(rest, known) and rest.abs().max() <= 1
        torch.testing.assert_close(executed.sum(1), known.sum(1))
    else:
        assert torch.equal(rest, known)
    policy.config.diffusion.prefix_noise = 0.0
    assert all(torch.equal(x, known) for x in policy._strayed(batch, known, known, prefix))


def test_draws_depend_on_the_sample_and_not_on_its_place():
    policy = small_policy(modes=ALL_MODES)
    batch = mixed()
    rows = torch.tensor([3, 0, 4, 1, 2])
    one, two = policy.loss(batch), policy.loss(batch.select(rows))
    for name in one.value:
        assert torch.allclose(one.value[name][rows], two.value[name], atol=1e-5)


def test_modes_are_drawn_in_their_shares_and_only_where_possible():
    policy = small_policy(modes={"policy": 0.5, "joint": 0.25, "forward": 0.25}, video_modes={"video": 1.0})
    seen = []
    for step in range(200):
        modes = policy.draw_modes(batch_of(*(robot_sample(i) for i in range(4)), video_sample(4), step=step))
        assert modes[4] == "video"
        seen += modes[:4]
    assert np.isclose(seen.count("policy") / len(seen), 0.5, atol=0.06)
    assert np.isclose(seen.count("joint") / len(seen), 0.25, atol=0.06)
    blind = robot_sample(0)
    blind.is_pad["future"][:] = True
    assert policy.draw_modes(batch_of(blind)) == ["policy"]


def test_a_sampling_step_is_one_graph():
    policy = small_policy()
    obs = batch_of(robot_sample(0))
    with torch.no_grad():
        context = policy.network.context(policy.fields.observed(obs))
    x, times = joint_noise(1), policy._times(1)

    def step(x: dict[str, torch.Tensor], tau: torch.Tensor, after: torch.Tensor) -> dict[str, torch.Tensor]:
        taus = {group: tau for group in ("future_rgb", "future_depth", "action")}
        out = policy.network.denoise("joint", context, x, taus, times)
        return {name: euler(x[name], out[name], tau, after) for name in x}

    with torch.no_grad():
        tau = [torch.tensor([1.0]), torch.tensor([0.5])]
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(x, *tau)
        for name, value in step(x, *tau).items():
            assert torch.allclose(compiled[name], value, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(mode="dream"), "mode='dream': expected one of policy, joint, video, forward, inverse"),
        (dict(mode="forward"), "mode='forward' needs actions"),
        (dict(mode="forward", actions=torch.zeros(1, 2, 9)), r"shape \(1, 2, 9\), expected \(1, 6, 3\)"),
        (dict(mode="inverse"), "mode='inverse' needs future=.*missing: \\['front'\\]"),
        (
            dict(noise={"action": torch.zeros(1, 2, 3)}),
            r"noise\['action'\] has shape \(1, 2, 3\), expected \(1, 6, 3\)",
        ),
        (dict(steps=0), "steps=0"),
        (
            dict(mode="inverse", future={"front": torch.zeros(1, 1, 4, 2, 2)}),
            r"latents of 'front' have shape \(1, 1, 4, 2, 2\), expected \(1, 2, ",
        ),
        (
            dict(prefix=torch.zeros(1, 6, 3), prefix_len=torch.tensor([1, 2, 3])),
            r"have shapes \(1, 6, 3\) and \(3,\), expected \(1, 6, 3\) and \(1,\)",
        ),
    ],
)
def test_bad_calls_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        small_policy().predict(batch_of(robot_sample(0)), **call)


def test_an_unknown_robot_is_an_error_and_not_a_guess():
    sample = robot_sample(0)
    sample.robot = "another arm"
    with pytest.raises(ValueError, match="another arm"):
        small_policy().predict(batch_of(sample))


def test_a_stem_that_sees_depth_sees_every_valid_pixel_of_it_and_nothing_of_what_is_absent():
    policy, noise = small_policy(model={"eyes": "stem", "stem_depth": True}), joint_noise(1)["action"]

    def acts(**changes):
        batch = batch_of(robot_sample(0))
        batch.fields["obs.depth_front"] = torch.full((1, 1, SIZE, SIZE), 500, dtype=torch.int16)
        change, there = changes.get("pixel"), changes.get("there", True)
        if change is not None:
            batch.fields["obs.depth_front"][0, 0, 3, 5] = change
        batch.fields["obs.depth_front"] = batch.fields["obs.depth_front"].view(torch.uint16)
        batch.has["obs.depth_front"] = torch.tensor([there])
        return policy.predict(batch, noise={"action": noise}).action

    plain = acts()
    assert not torch.equal(plain, acts(pixel=510)), "a centimetre in one pixel"
    assert not torch.equal(plain, acts(pixel=0)), "an invalid pixel is not one at the mean depth, 500 mm"
    assert torch.equal(acts(pixel=900), acts(pixel=20000)), "far away is far away"
    assert torch.equal(acts(there=False), acts(pixel=510, there=False))
    assert not torch.equal(plain, acts(there=False))
    observed = policy.fields.observed(batch_of(robot_sample(0)))
    assert observed.pixels["front"].shape == (1, 1, SIZE, SIZE, 5) and not observed.depth
    assert not observed.pixels["wrist"][..., 3:].any(), "this camera has no depth"


@pytest.mark.parametrize("eyes", ["latents", "stem"])
@pytest.mark.parametrize("text", ["tokens", "pooled", "both"])
def test_eyes_and_ears(eyes, text):
    policy = small_policy(model={"eyes": eyes, "text": text}, modes=ALL_MODES)
    terms, grads = gradients(policy, mixed())
    assert torch.isfinite(terms.total())
    assert ("network.tokens.stem.net.0.weight" in grads) == (eyes == "stem")
    policy.predict(mixed(), mode="joint", noise=joint_noise(5))


@pytest.mark.parametrize("learn_variance", [False, True])
def test_ddpm_trains_and_samples(learn_variance):
    policy = small_policy(objective="ddpm", learn_variance=learn_variance, modes=ALL_MODES)
    terms, _ = gradients(policy, mixed())
    assert torch.isfinite(terms.total())
    prediction = policy.predict(mixed(), mode="joint", noise=joint_noise(5), steps=5)
    assert torch.isfinite(prediction.action).all()
    assert prediction.future_depth["front"].shape == (5, 2, 8, 8)


def test_recomputed_activations_change_nothing():
    one, two = small_policy(modes=ALL_MODES), small_policy(model={"recompute": True}, modes=ALL_MODES)
    _, grads_one = gradients(one, mixed())
    _, grads_two = gradients(two, mixed())
    for name in grads_one:
        assert torch.allclose(grads_one[name], grads_two[name], atol=1e-6), name


def test_a_network_that_predicts_no_change_imagines_the_present():
    """Fresh heads say that the clean change is 0: from any noise, the imagined frame is the observed one."""
    policy = small_policy(future="change")
    for head in policy.network.tokens.heads.values():
        torch.nn.init.zeros_(head.linear.weight)
        torch.nn.init.zeros_(head.linear.bias)
    obs = batch_of(robot_sample(0), video_sample(1))
    prediction = policy.predict(obs, mode="joint", noise=joint_noise(2))
    now = policy.image_encoder.encode(obs.fields["obs.rgb_front"])
    assert torch.allclose(prediction.future_latent["front"], now.expand(-1, 2, -1, -1, -1), atol=1e-6)
    whole = small_policy(future="frame").predict(obs, mode="joint", noise=joint_noise(2)).future_latent["front"]
    assert not torch.allclose(whole, now.expand(-1, 2, -1, -1, -1), atol=1e-2)


@pytest.mark.parametrize(("mode", "hears"), [("policy", True), ("joint", True), ("forward", False), ("inverse", True)])
def test_what_an_action_causes_does_not_depend_on_the_words(mode, hears):
    """In training and in sampling, also under guidance."""
    policy, seen = small_policy(modes={mode: 1.0}), []
    context = policy.network.context
    policy.network.context = lambda observed: seen.append(observed) or context(observed)
    obs = batch_of(robot_sample(0), robot_sample(1))
    policy.loss(obs)
    given = {
        "forward": {"actions": obs.fields["action"]},
        "inverse": {"future": {"front": obs.fields["future.rgb_front"]}},
    }
    policy.predict(obs, mode=mode, guidance=2.0, **given.get(mode, {}))
    assert [bool(observed.has["text"].any()) for observed in seen] == [hears, hears]


def test_future_tokens_stand_on_the_present_of_their_own_place_and_camera():
    """Patches of the picture are tokens of the future in the same order; where nothing was seen, nothing is added."""
    policy, fields = small_policy(), ("future.latent_front", "future.depth_front")
    obs = batch_of(robot_sample(0), video_sample(1))
    groups = policy.network.modes["joint"].groups
    with torch.no_grad():
        before = policy.network.context(policy.fields.observed(obs, policy.fields.presents(obs, groups))).presents
        obs.fields["obs.rgb_front"][:, -1, 16:, :16] += 40  # a quarter of the picture: the third of four tokens
        obs.has["obs.depth_front"][:] = False
        after = policy.network.context(policy.fields.observed(obs, policy.fields.presents(obs, groups))).presents
    assert set(before) == set(after) == set(fields)
    changed = (before[fields[0]] != after[fields[0]]).any(-1)
    assert changed.tolist() == [[False, False, True, False]] * 2
    assert (before[fields[1]][0] != 0).any() and not after[fields[1]].any()
    assert not policy.fields.presents(obs, policy.network.modes["policy"].groups)  # acting encodes no picture for it


@pytest.mark.parametrize(
    ("modes", "acts_in", "imagines_in"),
    [
        ({"policy": 1.0}, "policy", ""),
        ({"policy": 0.1, "joint": 1.0}, "policy", "joint"),
        ({"joint": 1.0}, "joint", "joint"),
        ({"video": 0.5, "inverse": 0.5}, "video_inverse", "video_inverse"),
        ({"video": 1.0}, "policy", ""),
        ({}, "policy", ""),
    ],
)
def test_a_policy_acts_in_the_mode_its_actions_were_trained_in(modes, acts_in, imagines_in):
    policy = small_policy(modes=modes)
    obs = batch_of(robot_sample(0))
    noise = {name: torch.zeros(1, *shape) for name, shape in policy.noise_shapes(policy.acts_in).items()}
    assert (policy.acts_in, policy.imagines_in) == (acts_in, imagines_in)
    assert policy.predict(obs, mode=policy.acts_in, noise=noise).action.shape == (1, CHUNK, 3)


def test_the_present_is_encoded_once_a_plan(monkeypatch):
    policy, obs, calls = small_policy(coupling="pad"), batch_of(robot_sample(0)), []
    encode = policy.image_encoder.encode
    monkeypatch.setattr(policy.image_encoder, "encode", lambda rgb: calls.append(rgb.shape) or encode(rgb))
    policy.predict(obs, mode="joint")
    assert len(calls) == 2  # front, seen and imagined; wrist


def test_in_two_stages_the_actions_are_those_that_lead_to_the_imagined_frames():
    policy, obs = small_policy(), batch_of(robot_sample(0), robot_sample(1))
    noise = {name: torch.randn(2, *shape) for name, shape in policy.noise_shapes("video_inverse").items()}
    found = policy.predict(obs, mode="video_inverse", noise=noise)
    seen = policy.predict(obs, mode="video", noise={name: x for name, x in noise.items() if name != "action"})
    assert torch.equal(found.future_latent["front"], seen.future_latent["front"])
    assert torch.equal(found.future_depth["front"], seen.future_depth["front"])
    done = policy.predict(obs, mode="inverse", future=seen.future_latent, noise={"action": noise["action"]})
    assert torch.equal(found.action, done.action)
    other = {"front": seen.future_latent["front"] + 1}
    changed = policy.predict(obs, mode="inverse", future=other, noise={"action": noise["action"]})
    assert not torch.allclose(changed.action, done.action)


@pytest.mark.parametrize(("mode", "executed"), [("policy", 0), ("joint", 0), ("forward", 1), ("inverse", 1)])
def test_what_happens_is_learned_from_the_executed_action_and_what_to_do_from_the_label(mode, executed):
    policy = small_policy(modes={mode: 1.0})
    plain, disturbed, carried_out = (robot_sample(0) for _ in range(3))
    other = robot_sample(1).fields["action"]
    disturbed.fields["executed"] = carried_out.fields["action"] = other
    losses = [float(policy.loss(batch_of(sample)).total().detach()) for sample in (plain, disturbed, carried_out)]
    assert losses[0] != losses[2] and losses[1] == losses[2 * executed]


@pytest.mark.parametrize("mode", ["policy", "joint", "inverse"])
def test_draws_side_by_side_are_draws_one_by_one(mode):
    """n noise draws share one context and one sequence, and none of them sees another."""
    policy, n = small_policy(), 3
    obs = batch_of(robot_sample(0), robot_sample(1, None))
    with torch.no_grad():
        context = policy.network.context(policy.fields.observed(obs))
        x = {name: torch.randn(2 * n, *shape) for name, shape in policy.noise_shapes(mode).items()}
        tau = {group: torch.rand(2 * n) for group in policy.network.modes[mode].groups}
        clean = torch.arange(CHUNK)[None] < torch.arange(2 * n)[:, None] if mode != "inverse" else None
        together = policy.network.denoise(mode, context, x, tau, policy._times(2 * n), None, clean)
        for i in range(n):
            rows = [i, n + i]
            alone = policy.network.denoise(
                mode,
                context,
                {name: value[rows] for name, value in x.items()},
                {group: value[rows] for group, value in tau.items()},
                policy._times(2),
                None,
                None if clean is None else clean[rows],
            )
            for name, value in alone.items():
                assert torch.allclose(together[name][rows], value, atol=1e-5)
