"""PAD and DiT: against a plain reference, against diffusers, and the laws that hold for all their settings."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from model import pad_reference as reference
from model.pad_reference import arguments, random_weights
from small import HashEncoder, MeanEncoder
from torch import nn

from padpolicy.config import ConfigError, EncodersConfig, dit_sizes
from padpolicy.diffusion.path import step_of
from padpolicy.model.families import build_network
from padpolicy.model.network import Observed
from padpolicy.model.pad import PadNetwork
from padpolicy.policy import PadPolicy
from padpolicy.released import import_pad, save_released

B, K = 2, 1000
RGB, DEPTH = "future.latent_front", "future.depth_front"
CONDITIONINGS = ("in_context", "cross_attention", "adaln", "adaln_zero")


def imported(folder: Path, **flags: bool) -> PadPolicy:
    """A policy from a released checkpoint of random weights, read from a file."""
    args = arguments(**flags)
    save_released(folder / "pad.pt", random_weights(args), vars(args))
    encoders = {"image_encoder": MeanEncoder(), "text_encoder": HashEncoder()}
    return import_pad(folder / "pad.pt", EncodersConfig(), camera="front", robot="arm", step_s=0.1, **encoders)


def inputs(depth: bool = True) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    shapes = {"rgb": (3, 4, 8, 8), "rgb_now": (1, 4, 8, 8), "action": (3, 4), "pose_now": (1, 4)}
    shapes |= {"depth": (3, 8, 8), "depth_now": (1, 8, 8), "text": (8,)}
    return {name: torch.randn(B, *shape) for name, shape in shapes.items()} | {"t": torch.tensor([3, 872])}


def observed(x: dict[str, torch.Tensor]) -> Observed:
    presents = {RGB: x["rgb_now"], DEPTH: x["depth_now"]}
    has = {"text": torch.ones(len(x["text"]), dtype=torch.bool)}
    return Observed({}, {}, {}, x["pose_now"], has, torch.zeros(B, 1), presents, text_pooled=x["text"])


def fields(x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {RGB: x["rgb"], DEPTH: x["depth"], "action": x["action"]}


def taus(t: torch.Tensor) -> dict[str, torch.Tensor]:
    return {group: (t + 1) / K for group in ("future_rgb", "future_depth", "action")}


def ours(policy: PadPolicy, x: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What our network says, stacked as PAD stacks it."""
    with torch.no_grad():
        noised = {name: value for name, value in fields(x).items() if name != DEPTH or policy.spec.depth_cameras}
        out = policy.network("joint", observed(x), noised, taus(x["t"]), {})
    assert all(out[f].shape[1] == 3 for f in noised), "a frame or a step is a row of its own"
    rgb = torch.cat([part.flatten(1, 2) for part in out[RGB].chunk(2, 2)], 1)
    action = out["action"]
    if policy.config.model.one_pose_token:
        action = torch.cat([part.flatten(1) for part in action.chunk(2, 2)], 1)[:, None]
    depth = torch.cat([out[DEPTH][:, :, 0], out[DEPTH][:, :, 1]], 1) if DEPTH in noised else None
    return rgb, action, depth


def theirs(x: dict[str, torch.Tensor], **flags: bool) -> tuple[torch.Tensor, ...]:
    args = arguments(**flags)
    now = {"rgb": x["rgb"].flatten(1, 2), "rgb_now": x["rgb_now"][:, 0], "pose_now": x["pose_now"][:, 0]}
    return reference.forward(random_weights(args), args, **{**x, **now})


def differ(a: tuple, b: tuple) -> float:
    return max(float((p - q).abs().max()) for p, q in zip(a, b, strict=True) if p is not None)


@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("one_token", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_a_released_checkpoint_predicts_what_its_description_says(tmp_path, depth, one_token, mask):
    flags = {"depth": depth, "one_token": one_token, "mask": mask}
    got, expected = ours(imported(tmp_path, **flags), inputs()), theirs(inputs(), **flags)
    assert expected[0].abs().mean() > 0.1
    assert (got[2] is None) == (expected[2] is None) == (not depth)
    assert differ(got, expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("stack", lambda noised, now: torch.cat([now, noised], 1)),
        ("time_features", lambda t, right=reference.time_features: right(t).roll(128, 1)),
        ("line", lambda x, width, right=reference.line: right(x, width).roll(width // 2)),
        ("unpatchify", lambda x, p, c, right=reference.unpatchify: right(x, p, c).transpose(2, 3)),
        ("square", lambda n, r, w, right=reference.square: right(n, r, w).view(n, n, w).transpose(0, 1).reshape(-1, w)),
    ],
)
def test_any_other_order_would_be_seen(tmp_path, monkeypatch, name, wrong):
    got = ours(imported(tmp_path), inputs())
    monkeypatch.setattr(reference, name, wrong)
    assert differ(got, theirs(inputs())) > 1e-2


def test_it_is_dit_with_labels_and_no_poses():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    other = diffusers.DiTTransformer2DModel(
        2, 8, 4, 8, num_layers=2, sample_size=8, num_embeds_ada_norm=10, norm_eps=1e-6
    )
    for block in other.transformer_blocks:  # diffusers spaces the frequencies over 127 steps, DiT's own code over 128
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    dit = PadNetwork(16, 2, 2, nn.Embedding(11, 16), side=8, patch=2, channels=4)
    weights = {}
    for name, w in other.state_dict().items():
        weights[name] = torch.randn_like(w) * 0.2
    other.load_state_dict(weights)

    def pair(ours: str, theirs: str) -> dict[str, torch.Tensor]:
        return {f"{ours}.{kind}": weights[f"{theirs}.{kind}"] for kind in ("weight", "bias")}

    first = "transformer_blocks.0.norm1.emb"
    mapped = {"pos_embed": other.pos_embed.pos_embed, **pair("x_embedder.proj", "pos_embed.proj")}
    mapped |= pair("t_embedder.mlp.0", f"{first}.timestep_embedder.linear_1")
    mapped |= pair("t_embedder.mlp.2", f"{first}.timestep_embedder.linear_2")
    mapped["y_embedder.embedding_table.weight"] = weights[f"{first}.class_embedder.embedding_table.weight"]
    mapped |= pair("final_layer.adaLN_modulation.1", "proj_out_1") | pair("final_layer.linear", "proj_out_2")
    for i in range(2):
        block = f"transformer_blocks.{i}"
        if i:  # there every block has a copy of the embeddings
            shared = {name: w for name, w in weights.items() if name.startswith(first)}
            shared = {name.replace("transformer_blocks.0", block): w for name, w in shared.items()}
            assert not other.load_state_dict(shared, strict=False).unexpected_keys
        mapped |= pair(f"blocks.{i}.adaLN_modulation.1", f"{block}.norm1.linear")
        mapped |= pair(f"blocks.{i}.attn.proj", f"{block}.attn1.to_out.0")
        mapped |= pair(f"blocks.{i}.mlp.fc1", f"{block}.ff.net.0.proj") | pair(
            f"blocks.{i}.mlp.fc2", f"{block}.ff.net.2"
        )
        for kind in ("weight", "bias"):
            qkv = [weights[f"{block}.attn1.to_{part}.{kind}"] for part in "qkv"]
            mapped[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
    assert torch.allclose(dit.pos_embed, mapped["pos_embed"], atol=1e-6)
    dit.load_state_dict(mapped)
    x, t, label = torch.randn(3, 4, 8, 8), torch.tensor([0, 17, 999]), torch.tensor([0, 4, 10])
    with torch.no_grad():
        expected = other.eval()(x, timestep=t, class_labels=label).sample
        got = dit.predict(x, t.float(), label)[""]
    assert expected.abs().mean() > 0.1
    assert torch.allclose(got, expected, atol=1e-5)


def network(conditioning: str = "adaln_zero", **settings) -> PadNetwork:
    sizes = {"side": 8, "patch": 2, "channels": 4, "frames": 3, "camera": "front"}
    sizes |= {
        "actions": 3,
        "action_dim": 4,
        "proprio_dim": 4,
        "depth_size": 8,
        "depth_patch": 4,
        "depth_camera": "front",
    }
    return PadNetwork(16, 2, 2, nn.Linear(8, 16), **{**sizes, "conditioning": conditioning, **settings})


def random_network(conditioning: str = "adaln_zero", **settings) -> PadNetwork:
    torch.manual_seed(0)
    made = network(conditioning, **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return made


def said(made: PadNetwork, x: dict[str, torch.Tensor], mode: str = "joint", **more) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return made(mode, observed(x), fields(x), taus(x["t"]), {}, **more)


def test_a_fresh_adaln_zero_block_is_the_identity_and_the_others_are_not():
    x, asked = torch.randn(B, 5, 16), torch.randn(B, 2, 16)
    for conditioning in CONDITIONINGS:
        for block in network(conditioning).blocks:
            assert torch.equal(block(x, asked, None), x) == (conditioning == "adaln_zero")


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_conditioning_hears_time_and_text_and_keeps_the_mask(conditioning):
    made, x = random_network(conditioning), inputs()
    out = said(made, x)
    for name, other in (("text", torch.randn(B, 8)), ("t", torch.tensor([500, 2]))):
        heard = said(made, {**x, name: other})
        assert all((heard[f] - out[f]).abs().max() > 1e-3 for f in out), name
    moved = said(made, {**x, "action": x["action"] + 1, "depth": x["depth"] + 1})
    assert torch.allclose(moved[RGB], out[RGB], atol=1e-5)
    assert (moved["action"] - out["action"]).abs().max() > 1e-3
    seen = said(made, {**x, "rgb": x["rgb"] + 1})
    assert (seen["action"] - out["action"]).abs().max() > 1e-3
    assert not torch.allclose(said(random_network(conditioning, masked=False), x)[RGB], out[RGB], atol=1e-3)


def test_recomputing_activations_changes_nothing():
    gradients = []
    for recompute in (False, True):
        made, x = random_network(recompute=recompute), inputs()
        sum(out.square().sum() for out in made("joint", observed(x), fields(x), taus(x["t"]), {}).values()).backward()
        gradients.append(made.x_embedder["proj"].weight.grad)
    assert torch.allclose(*gradients, rtol=1e-4)


def test_several_draws_of_one_observation_are_as_if_each_had_its_own():
    made, x, n = random_network(), inputs(), 3
    noise = {name: torch.randn(B * n, *value.shape[1:]) for name, value in fields(x).items()}
    t = torch.tensor([0, 1, 2, 500, 700, 999])
    with torch.no_grad():
        together = made.denoise("joint", made.context(observed(x)), noise, taus(t), {})
        repeated = {name: value.repeat_interleave(n, 0) for name, value in x.items() if name != "t"}
        apart = made("joint", observed(repeated), noise, taus(t), {})
    assert all(torch.allclose(together[f], apart[f], atol=1e-6) for f in apart)


def test_what_is_absent_is_zeros_whatever_stands_there():
    made, x = random_network(), inputs()
    there = torch.tensor([True, False])
    holes = {**x, "action": x["action"].clone(), "depth": x["depth"].clone()}
    holes["action"][1], holes["depth"][1] = torch.nan, torch.nan
    got = said(made, holes, has={RGB: torch.ones(B, dtype=torch.bool), DEPTH: there, "action": there})
    zeros = {**x, "action": x["action"] * there[:, None, None], "depth": x["depth"] * there[:, None, None, None]}
    expected = said(made, zeros)
    assert all(torch.equal(got[f], expected[f]) for f in expected)


def test_video_is_joint_with_zeros_in_the_place_of_poses_and_depth():
    made, x = random_network(masked=False), inputs()
    zeros = {n: torch.zeros_like(v) for n, v in x.items() if n in ("action", "pose_now", "depth", "depth_now")}
    with torch.no_grad():
        got = made("video", observed(x), {RGB: x["rgb"]}, {"future_rgb": taus(x["t"])["future_rgb"]}, {})
    assert list(got) == [RGB]
    assert torch.equal(got[RGB], said(made, {**x, **zeros})[RGB])


def test_the_network_is_told_the_step_that_the_noise_was_mixed_at():
    told = []
    made = network()
    made.t_embedder.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    tau = torch.rand(B * 50)
    x = {name: value.repeat_interleave(50, 0) for name, value in inputs().items() if name != "t"}
    made("joint", observed(x), fields(x), {"future_rgb": tau}, {})
    assert torch.equal(told[0].long(), step_of(tau, K))


@pytest.mark.parametrize("numbers", [0, 2, 4, 6])
def test_the_present_pose_is_all_of_the_newest_proprioception(numbers):
    made = network(proprio_dim=numbers)
    assert made.a_embedder.in_features == 3 * 4 + numbers
    state = torch.arange(1.0, numbers + 1).expand(B, 2, -1) * torch.tensor([[[-1.0], [1.0]]])
    x = inputs() | {"pose_now": state if numbers else None}
    assert made.context(observed(x)).pose.tolist() == [list(range(1, numbers + 1))] * B
    made.denoise("joint", made.context(observed(x)), fields(x), taus(x["t"]), {})


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_the_sizes_are_those_of_the_paper(size, millions):
    width, depth, heads = dit_sizes()[size]
    with torch.device("meta"):
        dit = PadNetwork(width, depth, heads, nn.Embedding(1001, width), side=32, patch=2, channels=4)
    count = sum(parameter.numel() for parameter in dit.parameters()) + dit.pos_embed.numel()
    assert abs(count / 1e6 - millions) < 0.6


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_every_patch_size_gives_back_the_picture(patch):
    made, x = random_network(patch=patch), inputs()
    assert said(made, x)[RGB].shape == (B, 3, 8, 8, 8)
    fixed = random_network(patch=patch, out_factor=1)
    assert {f: out.shape for f, out in said(fixed, x).items()} == {f: v.shape for f, v in fields(x).items()}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"future_cameras": ["front", "wrist"]}, "looks through one camera"),
        ({"cameras": ["front", "wrist"]}, "looks through one camera"),
        ({"cameras": []}, "looks through one camera"),
        ({"depth_cameras": ["front"], "future_depth_cameras": []}, "looks through one camera"),
        ({"times": "independent"}, "times='independent': model.family=pad has 'shared'"),
        ({"obs_steps": 3}, "obs_steps=3: model.family=pad has 1"),
        ({"coupling": "blind"}, "coupling='blind': model.family=pad has 'pad' and 'full'"),
        ({"eyes": "stem"}, "eyes='stem': model.family=pad has 'latents'"),
        ({"text": "tokens"}, "text='tokens': model.family=pad hears the pooled sentence"),
        ({"resnet_stages": 2}, "resnet_stages=2 is for model.family=unet and transformer; it is 'pad'"),
        ({"glance": True}, "glance=True is for model.family=padpolicy; it is 'pad'"),
    ],
)
def test_what_pad_has_no_place_for_is_refused(tmp_path, changed, message):
    settings = copy.deepcopy(imported(tmp_path).config)
    for part in (settings.spec, settings.model, settings.diffusion):
        for key in vars(part).keys() & changed.keys():
            setattr(part, key, changed[key])
    with pytest.raises(ConfigError, match=message):
        build_network(settings, 4, 8, 8, 2, 8)
