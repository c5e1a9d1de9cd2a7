from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from padpolicy.encoders.image import STATS, WEIGHTS, ImageEncoder, fit_latent_stats
from padpolicy.shipped import shipped


def tiny_vae(channels: int = 4, **config):
    """Untrained, three halvings, in the very format of stabilityai/sd-vae-ft-mse."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 16],
        norm_num_groups=4,
        latent_channels=channels,
        **config,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoders") / "sd-vae"
    tiny_vae(scaling_factor=0.18215).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ImageEncoder:
    return ImageEncoder.load(str(folder))


def pictures(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))


@pytest.mark.parametrize("leading", [(), (2,), (2, 1, 3), (0,)])
def test_shapes_and_dtypes_of_a_round_trip(encoder: ImageEncoder, leading: tuple[int, ...]) -> None:
    latents = encoder.encode(pictures(*leading, 16, 24))
    assert latents.shape == (*leading, 4, 2, 3) and latents.dtype == torch.float32 and not latents.requires_grad
    decoded = encoder.decode(latents.half())
    assert decoded.shape == (*leading, 16, 24, 3) and decoded.dtype == torch.uint8


def test_numpy_and_torch_pictures_have_the_same_latents(encoder: ImageEncoder) -> None:
    image = pictures(16, 16)
    array = image.numpy().copy()
    array.flags.writeable = False  # as a memory map is
    assert torch.equal(encoder.encode(image), encoder.encode(array))


def test_is_deterministic_and_independent_of_autocast(encoder: ImageEncoder) -> None:
    image = pictures(2, 16, 16)
    first = encoder.encode(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode(image), first)
        assert torch.equal(encoder.decode(first), encoder.decode(first))


def test_chunks_do_not_change_the_result(encoder: ImageEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pictures(5, 16, 16)
    whole = encoder.encode(image)
    monkeypatch.setattr("padpolicy.encoders.image.PIXELS_AT_ONCE", 2 * 16 * 16)
    torch.testing.assert_close(encoder.encode(image), whole, atol=1e-5, rtol=1e-4)
    assert (encoder.decode(whole)[3:].int() - encoder.decode(whole[3:]).int()).abs().max() <= 1


def test_latents_are_the_scaled_posterior_mean(encoder: ImageEncoder) -> None:
    image = pictures(1, 16, 16)
    raw = encoder.vae.encode(image.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
    torch.testing.assert_close(encoder.encode(image), raw * 0.18215, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("size", [(95, 96), (96, 100), (4, 8)])
def test_refuses_sizes_it_cannot_halve(encoder: ImageEncoder, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels.*multiples of 8.*data.image_size"):
        encoder.encode(pictures(*size))


@pytest.mark.parametrize("bad", [torch.zeros(8, 8, 3), torch.zeros(8, 8, 4, dtype=torch.uint8)])
def test_refuses_what_is_no_picture(encoder: ImageEncoder, bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        encoder.encode(bad)


def test_refuses_latents_of_another_encoder(encoder: ImageEncoder) -> None:
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 4, h, w\), got \(1, 8, 2, 2\)"):
        encoder.decode(torch.zeros(1, 8, 2, 2))


def test_fingerprint_knows_weights_and_statistics(folder: Path, encoder: ImageEncoder, tmp_path: Path) -> None:
    assert ImageEncoder.load(str(folder)).fingerprint == encoder.fingerprint
    prints = {encoder.fingerprint}
    vae = tiny_vae(scaling_factor=0.18215)
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 0.01
    vae.save_pretrained(tmp_path / "other")
    prints.add(ImageEncoder.load(str(tmp_path / "other")).fingerprint)
    (tmp_path / "other" / STATS).write_text(json.dumps({"mean": [0.0] * 4, "std": [1.0, 1.0, 1.0, 1.1]}))
    prints.add(ImageEncoder.load(str(tmp_path / "other")).fingerprint)
    assert len(prints) == 3


def test_a_better_decoder_keeps_the_fingerprint(encoder: ImageEncoder) -> None:
    vae = tiny_vae()
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] += 0.01
    other = ImageEncoder(vae, encoder.mean.flatten(), encoder.std.flatten())
    assert other.fingerprint == encoder.fingerprint
    image = pictures(16, 16)
    assert torch.equal(other.encode(image), encoder.encode(image))


def test_fingerprint_is_the_same_for_half_precision_files(folder: Path, encoder: ImageEncoder, tmp_path: Path) -> None:
    weights = {name: value.half() for name, value in load_file(folder / WEIGHTS).items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(weights, tmp_path / WEIGHTS)
    half = ImageEncoder.load(str(tmp_path))
    assert half.fingerprint == encoder.fingerprint
    assert all(p.dtype == torch.float32 for p in half.vae.parameters())


def test_saved_encoder_is_the_same_encoder(tmp_path: Path) -> None:
    mean, std = torch.tensor([0.1, -2.0, 0.0, 1 / 3]), torch.tensor([0.5, 1.0, 2.0, 1 / 7])
    before = ImageEncoder(tiny_vae(), mean, std)
    before.save(tmp_path)
    after = ImageEncoder.load(str(tmp_path))
    assert after.fingerprint == before.fingerprint
    image = pictures(1, 16, 16)
    torch.testing.assert_close(
        after.encode(image), before.encode(image), atol=2e-2, rtol=0
    )  # weights went through fp16


def test_reads_the_vae_of_a_whole_pipeline(tmp_path: Path, encoder: ImageEncoder) -> None:
    tiny_vae(scaling_factor=0.18215).save_pretrained(tmp_path / "vae")
    assert ImageEncoder.load(str(tmp_path)).fingerprint == encoder.fingerprint


def test_says_what_a_folder_lacks(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match="lacks diffusion_pytorch_model.safetensors.*other formats"):
        ImageEncoder.load(str(tmp_path))


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")  # between diffusers and huggingface_hub
def test_says_what_names_are_possible() -> None:
    with pytest.raises(FileNotFoundError, match="no such folder.*shipped:NAME"):
        ImageEncoder.load("nobody/no-such-vae")


@pytest.mark.parametrize(
    "stats, message",
    [({"mean": [0.0] * 3, "std": [1.0] * 3}, "expected 4"), ({"mean": [0.0] * 4}, "`mean` and `std`")],
)
def test_refuses_statistics_that_do_not_fit(folder: Path, tmp_path: Path, stats: dict, message: str) -> None:
    for name in ("config.json", WEIGHTS):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / STATS).write_text(json.dumps(stats))
    with pytest.raises(ValueError, match=message):
        ImageEncoder.load(str(tmp_path))


def test_fitted_statistics_standardise(encoder: ImageEncoder) -> None:
    frames = pictures(8, 16, 16).numpy()
    stats = fit_latent_stats(encoder.vae, frames)
    fitted = ImageEncoder(encoder.vae, torch.tensor(stats["mean"]), torch.tensor(stats["std"]))
    latents = fitted.encode(frames)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_shipped_vae_redraws_the_tabletop() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    encoder = ImageEncoder.load("shipped:vae")
    env = gymnasium.make("padpolicy_envs:padpolicy/Tabletop-v0", depth=False)
    seeds, cameras = range(2_000_000, 2_000_004), ("front", "wrist")
    frames = [env.reset(seed=seed)[0][f"rgb_{camera}"] for seed in seeds for camera in cameras]
    env.close()
    images = torch.from_numpy(np.stack(frames))
    latents = encoder.encode(images)
    error = (encoder.decode(latents).double() - images.double()).square().mean((1, 2, 3))
    assert (10 * torch.log10(255**2 / error)).mean() >= 28
    assert 0.5 < latents.std() < 1.5
    size = sum(file.stat().st_size for file in shipped("data/weights/vae").iterdir())
    assert size < 3_000_000
