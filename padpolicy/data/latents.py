"""Latents: every frame encoded once and kept beside the pixels, under the encoder's fingerprint.

    latents/<fingerprint>/latent_<camera>              (T, C, h, w) f2, of the pictures as they are in the store
    latents/<fingerprint>_<size>px/latent_<camera>     the same of pictures letterboxed to <size> pixels

The group's attribute `n_rows{camera: rows}` is the commit point, as `n_episodes` is the store's: rows behind it are a
tail that the next call overwrites, so an interrupted encoding goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import zarr

from padpolicy.data.letterbox import letterbox
from padpolicy.data.layout import StoreError, create_rows, lock, open_array, remove_leftovers, write_attrs
from padpolicy.data.store import Store

_FRAMES = 64  # encoded at once, and committed at once


class ImageEncoder(Protocol):
    """What `encode_store` needs of an encoder."""

    fingerprint: str  # of its weights and latent scaling: another value, another folder

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        """rgb (N, H, W, 3) uint8 -> (N, C, h, w) float, about unit variance."""


def encode_store(
    path: str | Path,
    encoder: ImageEncoder,
    cameras: Sequence[str],
    image_size: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Encodes what is not yet encoded of the store's cameras; those it does not have are skipped.

    Args:    image_size: letterbox to this many pixels first, where the store has others; 0 leaves pictures as they are.
             progress: is called with (frames done, frames in all).
    Returns: how many frames were encoded now.
    Raises:  StoreError if another process encodes this store with the same encoder, the pixels are damaged, or the
             latents cannot be written.
    """
    store = Store.open(path)
    cameras = [camera for camera in cameras if f"rgb_{camera}" in store.fields]
    groups = {camera: _group_name(store, encoder.fingerprint, camera, image_size) for camera in cameras}
    total = store.n_rows * len(cameras)
    done = sum(_rows_done(store, groups[camera], camera) for camera in cameras)
    before = done
    if done == total:
        return 0
    root = zarr.open_group(store.path, mode="r+")
    try:
        for camera in cameras:
            root.require_group(groups[camera])
            folder = store.path / groups[camera]
            with lock(folder):
                remove_leftovers(folder, f"latent_{camera}")
                for n_new in _encode_camera(store, root[groups[camera]], encoder, camera, image_size):
                    done += n_new
                    if progress:
                        progress(done, total)
    except OSError as error:
        raise StoreError(
            f"{store.path}: the latents cannot be written beside the pixels ({error}). Take data.cache_latents=false, "
            "which encodes frames anew whenever they are used, or train from a copy of the store elsewhere."
        ) from error
    return done - before


def _encode_camera(
    store: Store, group: zarr.Group, encoder: ImageEncoder, camera: str, image_size: int
) -> Iterator[int]:
    """Encodes and commits one block after the other; yields the size of each."""
    name, attrs = f"latent_{camera}", group.attrs.asdict()
    for start in range(_rows_done(store, group.path, camera), store.n_rows, _FRAMES):
        stop = min(start + _FRAMES, store.n_rows)
        rgb = store.read(f"rgb_{camera}", start, stop)
        rgb = letterbox(rgb, image_size) if image_size else rgb
        with torch.inference_mode():
            latent = encoder.encode(torch.from_numpy(rgb)).float().cpu().numpy().astype(np.float16)
        if not np.isfinite(latent).all():
            raise StoreError(
                f"{store.path}: the latents of rgb_{camera}, rows {start}..{stop - 1}, are NaN or beyond float16. "
                "The encoder's weights or its latent scaling are damaged."
            )
        if name not in group:
            create_rows(group, name, latent.shape[1:], "f2")
        array = open_array(group, name)
        array.resize((stop, *array.shape[1:]))
        array[start:stop] = latent
        attrs["n_rows"] = attrs.get("n_rows", {}) | {camera: stop}
        write_attrs(store.path / group.path, attrs)  # the commit
        yield stop - start


def cached_latents(store: Store, fingerprint: str, camera: str, image_size: int = 0) -> str | None:
    """Name of the array with the latents of all committed frames of a camera, or None. Read it with `store.rows`."""
    if camera not in store.cameras:
        return None
    group = _group_name(store, fingerprint, camera, image_size)
    return f"{group}/latent_{camera}" if _rows_done(store, group, camera) >= store.n_rows > 0 else None


def _group_name(store: Store, fingerprint: str, camera: str, image_size: int) -> str:
    scaled = image_size and store.cameras[camera]["size"] != [image_size, image_size]
    return f"latents/{fingerprint}" + (f"_{image_size}px" if scaled else "")


def _rows_done(store: Store, group: str, camera: str) -> int:
    """How many rows of a camera are encoded and committed, as the disk says now."""
    folder = store.path / group
    if not (folder / "zarr.json").is_file() and not (folder / ".zgroup").is_file():
        return 0
    root = zarr.open_group(store.path, mode="r")
    return int(root[group].attrs.get("n_rows", {}).get(camera, 0))
