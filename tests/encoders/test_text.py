from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from padpolicy.encoders.text import CONFIG, TextEncoder, dequantise_rows, pretrained_config, quantise_rows
from padpolicy.shipped import shipped

CFG = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 32, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def open_clip():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import open_clip

    return open_clip


@pytest.fixture(scope="module")
def clip(open_clip):
    torch.manual_seed(0)
    return open_clip.CLIP(**CFG)


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP in open_clip's own layout."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("text") / "clip"
    path.mkdir()
    (path / CONFIG).write_text(json.dumps({"model_cfg": CFG, "preprocess_cfg": {}}))
    weights = {name: value.detach().clone().contiguous() for name, value in clip.named_parameters()}
    save_file(weights, path / "open_clip_model.safetensors")
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.load(f"local-dir:{folder}")


def test_shapes_and_mask(encoder: TextEncoder) -> None:
    out = encoder.encode(["push it", ""], 10)
    assert out.tokens.shape == (2, 10, encoder.width) and out.tokens.dtype == torch.float32
    assert out.mask.dtype == torch.bool and out.mask.sum(1).tolist() == [4, 2]  # with start and end of text
    assert out.pooled.shape == (2, encoder.pooled_width) == (2, 16)
    assert not out.tokens[~out.mask].any()
    assert encoder.encode([], 10).tokens.shape == (0, 10, encoder.width)


def test_pooled_is_open_clips_own_embedding(encoder: TextEncoder, clip, open_clip) -> None:
    ids = open_clip.SimpleTokenizer(context_length=32)(["open the drawer"])
    with torch.no_grad():
        expected = clip.eval().encode_text(ids)
    torch.testing.assert_close(encoder.encode(["open the drawer"], 8).pooled, expected)


def test_tokens_end_in_what_is_projected_to_pooled(encoder: TextEncoder) -> None:
    out = encoder.encode(["open the drawer"], 8)
    last = out.tokens[0, out.mask[0]][-1]
    torch.testing.assert_close(last @ encoder.model.text_projection, out.pooled[0])


def test_an_exclamation_mark_is_a_token(encoder: TextEncoder) -> None:
    # CLIP pads with the id of "!".
    assert encoder.encode(["stop !", "stop"], 8).mask.sum(1).tolist() == [4, 3]


def test_same_string_same_embedding(folder: Path, encoder: TextEncoder) -> None:
    alone = encoder.encode(["lift the red cube"], 12)
    fresh = TextEncoder.load(f"local-dir:{folder}")
    crowd = fresh.encode(["a much longer sentence about nothing at all", "lift the red cube", "no"], 12)
    assert torch.equal(crowd.tokens[1], alone.tokens[0]) and torch.equal(crowd.pooled[1], alone.pooled[0])


def test_padding_changes_nothing(encoder: TextEncoder) -> None:
    short, long = encoder.encode(["push it"], 6), encoder.encode(["push it"], 20)
    assert torch.equal(short.tokens, long.tokens[:, :6]) and torch.equal(short.mask, long.mask[:, :6])
    assert torch.equal(short.pooled, long.pooled)


def test_embedding_does_not_depend_on_who_asks_first(folder: Path, encoder: TextEncoder) -> None:
    fresh = TextEncoder.load(f"local-dir:{folder}")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        fresh.encode(["push it"], 6)
    out = fresh.encode(["push it"], 6)
    assert torch.equal(out.tokens, encoder.encode(["push it"], 6).tokens)
    torch.nn.Linear(encoder.width, 1)(out.tokens).sum().backward()  # refused for tensors of inference mode


def test_long_instructions_are_cut_with_a_warning(encoder: TextEncoder) -> None:
    with pytest.warns(UserWarning, match="'push the red cube' has 6 tokens, the policy sees the first 4"):
        out = encoder.encode(["push the red cube"], 4)
    assert out.mask.all() and torch.equal(out.tokens, encoder.encode(["push the red cube"], 6).tokens[:, :4])


def test_fingerprint_knows_the_text_tower_only(clip, open_clip, encoder: TextEncoder) -> None:
    def copy(change: str) -> TextEncoder:
        other = open_clip.CLIP(**CFG)
        other.load_state_dict(clip.state_dict(), strict=False)
        with torch.no_grad():
            dict(other.named_parameters())[change].flatten()[0] += 0.5
        return TextEncoder(other, open_clip.SimpleTokenizer(context_length=32), CFG)

    assert copy("positional_embedding").fingerprint != encoder.fingerprint
    assert copy("logit_scale").fingerprint == encoder.fingerprint


def test_saved_tower_is_the_same_tower(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    after = TextEncoder.load(f"local-dir:{tmp_path}")
    assert after.fingerprint == encoder.fingerprint
    torch.testing.assert_close(
        after.encode(["push it"], 6).tokens, encoder.encode(["push it"], 6).tokens, atol=2e-2, rtol=0
    )


def test_quantised_tower_is_near_and_stays_what_it_is(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "once", quantise=True)
    once = TextEncoder.load(f"local-dir:{tmp_path / 'once'}")
    near = torch.cosine_similarity(once.encode(["push it"], 6).pooled, encoder.encode(["push it"], 6).pooled)
    assert near > 0.999
    once.save(tmp_path / "twice", quantise=True)
    assert TextEncoder.load(f"local-dir:{tmp_path / 'twice'}").fingerprint == once.fingerprint


def test_quantised_rows_are_within_half_a_step() -> None:
    table = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 50)[:, None]
    table[3] = 0
    q, scale = quantise_rows(table)
    assert q.dtype == torch.int8 and scale.dtype == torch.float16 and scale.shape == (50,)
    assert ((dequantise_rows(q, scale) - table).abs() <= 0.57 * scale.float()[:, None]).all()
    again = quantise_rows(dequantise_rows(q, scale))
    assert torch.equal(again[0], q)


def test_pretrained_weights_by_path(open_clip, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "padpolicy-tiny.json").write_text(json.dumps(CFG))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model("padpolicy-tiny", pretrained=None)
    weights = {name: value.detach().clone().contiguous() for name, value in model.named_parameters()}
    save_file(weights, tmp_path / "weights.safetensors")
    loaded = TextEncoder.load(f"padpolicy-tiny/{tmp_path / 'weights.safetensors'}")
    direct = TextEncoder(model, open_clip.get_tokenizer("padpolicy-tiny"), CFG)
    assert loaded.fingerprint == direct.fingerprint


def test_a_tags_own_activation_is_built() -> None:
    assert pretrained_config("ViT-B-32", "openai")["quick_gelu"]
    assert "quick_gelu" not in pretrained_config("ViT-B-32", "laion2b_s34b_b79k")
    assert pretrained_config("ViT-B-32-quickgelu", "some/weights.pt")["quick_gelu"]


def test_quick_gelu_is_another_tower_and_stays_so(clip, open_clip, encoder: TextEncoder, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "padpolicy-quick.json").write_text(json.dumps(CFG | {"quick_gelu": True}))
    open_clip.add_model_config(tmp_path)
    weights = {name: value.detach().clone().contiguous() for name, value in clip.named_parameters()}
    save_file(weights, tmp_path / "weights.safetensors")
    quick = TextEncoder.load(f"padpolicy-quick/{tmp_path / 'weights.safetensors'}")
    quick.save(tmp_path / "saved")
    again = TextEncoder.load(f"local-dir:{tmp_path / 'saved'}")
    for tower in (quick, again):
        assert {type(block.mlp.gelu).__name__ for block in tower.model.transformer.resblocks} == {"QuickGELU"}
    assert quick.fingerprint == again.fingerprint != encoder.fingerprint
    assert not torch.equal(quick.encode(["push it"], 6).pooled, encoder.encode(["push it"], 6).pooled)


@pytest.mark.parametrize(
    "name, message",
    [
        ("ViT-B-32", "A tower without weights says nothing"),
        ("ViT-B-32/no-such-tag", "openai"),
        ("no-such-model/openai", "knows no model 'no-such-model'.*shipped:NAME"),
    ],
)
def test_names_without_weights_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextEncoder.load(name)


def test_an_unknown_shipped_name_lists_those_there_are() -> None:
    with pytest.raises(FileNotFoundError, match="'txet' does not come with padpolicy; .*weights has .*text, vae"):
        TextEncoder.load("shipped:txet")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="open_clip_config.json"):
        TextEncoder.load(f"local-dir:{tmp_path}")


def test_a_damaged_folder_is_named(encoder: TextEncoder, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    encoder.save(tmp_path)
    weights = load_file(tmp_path / "text.safetensors")
    del weights["ln_final.weight"]
    save_file(weights, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="missing.*ln_final.weight"):
        TextEncoder.load(f"local-dir:{tmp_path}")


def test_shipped_tower_knows_unseen_wordings() -> None:
    tasks = pytest.importorskip("padpolicy_envs").TASKS.values()
    encoder = TextEncoder.load("shipped:text")
    policy = json.loads((shipped("data/weights/tabletop") / "policy.json").read_text())
    assert encoder.fingerprint == policy["fingerprints"]["text"]
    normal = torch.nn.functional.normalize
    canonical = normal(encoder.encode([task.instruction for task in tasks], 24).pooled, dim=-1)
    unseen = normal(encoder.encode([task.held_out_paraphrase for task in tasks], 24).pooled, dim=-1)
    own_is_nearest = (unseen @ canonical.T).argmax(1) == torch.arange(len(canonical))
    training = torch.tensor([not task.held_out for task in tasks])
    assert own_is_nearest[training].float().mean() >= 0.9
    assert encoder.encode(["quantum zebras juggle marmalade!"], 24).tokens.isfinite().all()  # any English will do
    size = sum(file.stat().st_size for file in shipped("data/weights/text").iterdir())
    assert size < 8_000_000
