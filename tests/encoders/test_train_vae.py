from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def train_vae(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return pytest.importorskip("train_vae")


def settings(folder: Path, work: str) -> argparse.Namespace:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        np.save(folder / f"noise_{split}.npy", rng.integers(0, 256, (4, 32, 32, 3), np.uint8))
    return argparse.Namespace(
        **{"frames": [str(folder / "noise")], "share": None, "work": folder / work, "seed": 0, "device": "cpu"},
        **{"widths": [8, 8, 8, 16], "channels": 4, "decoder_of": None, "crop": 16, "batch": 2, "lr": 4e-3, "ema": 0.9},
        **{"mae": 0.02, "edges": 0.02, "kl": 5e-4, "steps": 4, "checkpoint_every": 2},
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "state-4.safetensors")


def test_a_stopped_training_ends_bit_identical(train_vae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_vae.train(settings(tmp_path, "whole"))
    crops, calls = train_vae.crops, iter([False] * 3 + [True])

    def stop_in_the_fourth_step(*args):
        if next(calls):
            raise KeyboardInterrupt
        return crops(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_vae, "crops", stop_in_the_fourth_step)
        train_vae.train(settings(tmp_path, "stopped"))
    train_vae.train(settings(tmp_path, "stopped"))
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_training_the_decoder_leaves_the_encoder_alone(train_vae, tmp_path: Path) -> None:
    train_vae.train(settings(tmp_path, "first"))
    then = settings(tmp_path, "second")
    then.decoder_of = tmp_path / "first"
    train_vae.train(then)
    train_vae.train(then)  # once more: resumes at its end and changes nothing
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    for name in first:
        if name.startswith("ema."):
            same = torch.equal(first[name], second[name])
            assert same == name.startswith(("ema.encoder.", "ema.quant_conv.")), name
