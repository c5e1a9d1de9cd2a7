"""Augmentation: one draw for everything that a sample shows, depth stays behind its colour, nothing else changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from padpolicy.batch import collate
from padpolicy.config import AugmentConfig
from padpolicy.sample import Sample
from padpolicy.training.augment import augment

SIDE = 32
COLOUR = AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.5)
PLACE = AugmentConfig(shift_px=4, crop=0.2)


def sample(index: int) -> Sample:
    """Two cameras and two frames; the depth of a pixel is 100 times its red, so that one tells the other."""
    rng = np.random.default_rng(index)
    fields = {}
    rgb = np.repeat(np.repeat(rng.integers(1, 256, (8, 8, 3), np.uint8), 4, 0), 4, 1)
    for name in ("obs.rgb_front", "obs.rgb_wrist", "future.rgb_front"):
        fields[name] = np.stack([rgb, rgb])
    fields["obs.depth_front"] = fields["obs.rgb_front"][..., 0].astype(np.uint16) * 200
    fields["action"] = rng.normal(size=(3, 2)).astype(np.float32)
    axes = {"obs": np.arange(2) / 10, "future": np.arange(2) / 10, "action": np.arange(3) / 10}
    is_pad = {axis: np.zeros(len(t), bool) for axis, t in axes.items()}
    return Sample(fields=fields, is_pad=is_pad, time_s=axes, text="go", robot="arm", index=index)


def batch(*indices: int, step: int = 5):
    return collate([sample(i) for i in indices], seed=3, step=step)


def test_without_settings_it_is_the_same_batch():
    b = batch(0, 1)
    assert augment(b, AugmentConfig()) is b


@pytest.mark.parametrize("cfg", [COLOUR, PLACE])
def test_one_draw_holds_for_all_frames_and_cameras(cfg):
    out = augment(batch(0, 1, 2), cfg)
    front = out.fields["obs.rgb_front"]
    assert not torch.equal(front, batch(0, 1, 2).fields["obs.rgb_front"])
    for name in ("obs.rgb_wrist", "future.rgb_front"):
        assert torch.equal(out.fields[name], front)
    assert torch.equal(front[:, 0], front[:, 1])
    assert torch.equal(out.fields["action"], batch(0, 1, 2).fields["action"])


def test_depth_stays_behind_its_colour():
    out = augment(batch(*range(8)), dataclasses.replace(PLACE, crop=0.0))
    red = out.fields["obs.rgb_front"][..., 0].float()
    depth = out.fields["obs.depth_front"].view(torch.int16).int() & 0xFFFF
    assert set((depth % 200).unique().tolist()) == {0}  # depths that were there, none in between
    # Bilinear colour differs from nearest depth only at the edges of the 4 px blocks.
    assert ((depth.float() / 200 - red).abs() < 1).float().mean() > 0.55
    assert depth.max() > 0x7FFF  # beyond int16


def test_a_sample_does_not_depend_on_its_batch_and_steps_differ():
    cfg = AugmentConfig(shift_px=4, crop=0.1, brightness=0.2)
    alone, among = augment(batch(2), cfg), augment(batch(0, 1, 2), cfg)
    assert torch.equal(alone.fields["obs.rgb_front"][0], among.fields["obs.rgb_front"][2])
    assert not torch.equal(alone.fields["obs.rgb_front"], augment(batch(2, step=6), cfg).fields["obs.rgb_front"])


def test_a_shift_moves_by_at_most_what_is_said_and_repeats_the_edge():
    b = batch(*range(40))
    out = augment(b, AugmentConfig(shift_px=4))
    after, before = (x.fields["obs.depth_front"][:, 0].view(torch.int16).int() for x in (out, b))
    shifts = set()
    for i in range(40):
        found = [
            (dy, dx)
            for dy in range(-4, 5)
            for dx in range(-4, 5)
            if torch.equal(after[i, 4:28, 4:28], before[i, 4 + dy : 28 + dy, 4 + dx : 28 + dx])
        ]
        assert found  # nearest: some whole shift
        shifts |= set(found)
    assert len(shifts) > 20 and out.fields["obs.rgb_front"].min() >= 1  # no black border came in


def test_colours_keep_their_bounds():
    only_light = augment(batch(*range(50)), AugmentConfig(brightness=0.3)).fields["obs.rgb_front"].float()
    ratio = only_light.flatten(1).mean(1) / batch(*range(50)).fields["obs.rgb_front"].float().flatten(1).mean(1)
    assert 0.65 < ratio.min() < 0.85 and 1.1 < ratio.max() < 1.31
    grey = augment(batch(0), AugmentConfig(saturation=0.5)).fields["obs.rgb_front"].float()
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert ((grey @ luma) - (batch(0).fields["obs.rgb_front"].float() @ luma)).abs().median() < 1.5


def test_latents_are_refused():
    b = batch(0)
    b.fields["future.latent_front"] = torch.zeros(1, 1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"future.latent_front: set data.cache_latents=false"):
        augment(b, PLACE)
