"""Latents beside the pixels: right, resumable, and never half believed."""

import numpy as np
import pytest
import torch

from padpolicy.data.latents import cached_latents, encode_store
from padpolicy.data.letterbox import letterbox
from padpolicy.data.store import Store, StoreError


class Encoder:
    fingerprint = "abc"

    def __init__(self, fail_after: int = 10**9, bad: bool = False) -> None:
        self.frames, self.fail_after, self.bad = 0, fail_after, bad

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        if self.frames >= self.fail_after:
            raise KeyboardInterrupt
        self.frames += len(rgb)
        latent = rgb[:, ::4, ::4].permute(0, 3, 1, 2).float() / 100
        return latent * float("nan") if self.bad else latent


@pytest.mark.parametrize("zarr_format", [3, 2])
def test_every_frame_is_encoded_once(new_store, zarr_format):
    path, encoder, seen = new_store(5, length=30, zarr_format=zarr_format), Encoder(), []
    assert encode_store(path, encoder, ["front", "wrist", "absent"], progress=lambda *p: seen.append(p)) == 300
    store = Store.open(path)
    for camera in ("front", "wrist"):
        got = store.read(cached_latents(store, "abc", camera), 0, store.n_rows)
        expected = Encoder().encode(torch.from_numpy(store.read(f"rgb_{camera}", 0, store.n_rows)))
        np.testing.assert_array_equal(got, expected.numpy().astype(np.float16))
    assert seen[-1] == (300, 300) and encode_store(path, encoder, ["front", "wrist"]) == 0 and encoder.frames == 300


def test_an_interrupted_encoding_goes_on_and_is_not_used_before(new_store, build):
    path = new_store(5, length=30)
    with pytest.raises(KeyboardInterrupt):
        encode_store(path, Encoder(fail_after=100), ["front"])
    assert cached_latents(Store.open(path), "abc", "front") is None
    encoder = Encoder()
    assert encode_store(path, encoder, ["front"]) == encoder.frames == 150 - 128
    assert cached_latents(Store.open(path), "abc", "front") is not None
    with Store.open(path, "a") as store:  # new frames: encoded next time, the cache unused until then
        store.append(build.episode(5, build.spec(), length=7))
    assert cached_latents(Store.open(path), "abc", "front") is None
    assert encode_store(path, Encoder(), ["front"]) == 7


def test_other_sizes_are_kept_apart(new_store):
    path = new_store(2)
    encode_store(path, Encoder(), ["front"], image_size=8)
    store = Store.open(path)
    assert cached_latents(store, "abc", "front") is None
    name = cached_latents(store, "abc", "front", image_size=8)
    expected = Encoder().encode(torch.from_numpy(letterbox(store.read("rgb_front", 0, 5), 8))).numpy()
    np.testing.assert_array_equal(store.read(name, 0, 5), expected.astype(np.float16))


def test_a_store_that_cannot_be_written_says_what_to_do(new_store):
    path = new_store(1)
    (path / "latents").write_text("in the way")  # permissions do not stop root, who runs some tests
    with pytest.raises(StoreError, match="cannot be written beside the pixels .*data.cache_latents=false"):
        encode_store(path, Encoder(), ["front"])


def test_encoding_clears_what_a_killed_one_left(new_store):
    path = new_store(1)
    encode_store(path, Encoder(), ["front"], image_size=8)
    folder = path / "latents/abc_8px"
    for file in (folder / "zarr.json.7.partial", folder / "latent_wrist/c.7.partial"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    encode_store(path, Encoder(), ["wrist"], image_size=8)
    assert not list(path.rglob("*.partial"))


def test_nan_latents_are_refused(new_store):
    with pytest.raises(StoreError, match="rows 0..63, are NaN"):
        encode_store(new_store(5, length=30), Encoder(bad=True), ["front"])


def test_processes_encode_the_same(new_store):
    one, many = new_store(6, "one.zarr", length=30), new_store(6, "many.zarr", length=30)
    encode_store(one, Encoder(), ["front", "wrist"])
    assert encode_store(many, Encoder(), ["front", "wrist"], workers=2, make_encoder=Encoder) == 360
    for camera in ("front", "wrist"):
        a, b = (Store.open(path) for path in (one, many))
        name = cached_latents(a, "abc", camera)
        np.testing.assert_array_equal(a.read(name, 0, a.n_rows), b.read(name, 0, b.n_rows))
