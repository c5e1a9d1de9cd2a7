"""Latents: every frame encoded once and kept beside the pixels, under the encoder's fingerprint.

    latents/<fingerprint>/latent_<camera>              (T, C, h, w) f2, of the pictures as they are in the store
    latents/<fingerprint>_<size>px/latent_<camera>     the same of pictures letterboxed to <size> pixels

The group's attribute `n_rows{camera: rows}` is the commit point, as `n_episodes` is the store's: rows behind it are a
tail that the next call overwrites, so an interrupted encoding goes on where it stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import zarr

from padpolicy.data.letterbox import letterbox
from padpolicy.data.files import open_root
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
    workers: int = 0,
    make_encoder: Callable[[], ImageEncoder] | None = None,
) -> int:
    """Encodes what is not yet encoded of the store's cameras; those it does not have are skipped.

    Args:    image_size: letterbox to this many pixels first, where the store has others; 0 leaves pictures as they are.
             progress: is called with (frames done, frames in all).
             workers: processes of one thread each that encode, each with an encoder of its own from `make_encoder`
                 (which is pickled); 0 encodes here.
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
    if not isinstance(store.path, Path):
        raise StoreError(
            f"{store.path} has no latents of this encoder, and nothing is written into an object store. Encode a copy on "
            "disk and bring it there with its latents/, or take data.cache_latents=false, which encodes while training."
        )
    root = zarr.open_group(store.folder(), mode="r+")
    try:
        with _Encoding(store, encoder, image_size, workers, make_encoder) as encoding:
            for camera in cameras:
                root.require_group(groups[camera])
                folder = store.folder() / groups[camera]
                with lock(folder):
                    remove_leftovers(folder, f"latent_{camera}")
                    for n_new in _encode_camera(store, root[groups[camera]], encoding, camera):
                        done += n_new
                        if progress:
                            progress(done, total)
    except OSError as error:
        raise StoreError(
            f"{store.path}: the latents cannot be written beside the pixels ({error}). Take data.cache_latents=false, "
            "which encodes frames anew whenever they are used, or train from a copy of the store elsewhere."
        ) from error
    return done - before


class _Encoding:
    """Encodes blocks of a store's frames, here or in processes; gives them in order."""

    def __init__(
        self,
        store: Store,
        encoder: ImageEncoder,
        image_size: int,
        workers: int,
        make_encoder: Callable[[], ImageEncoder] | None,
    ) -> None:
        self._here = (store, encoder, image_size)
        self._pool = None
        if workers and make_encoder is not None:
            self._pool = ProcessPoolExecutor(
                workers, get_context("spawn"), _start_worker, (store, make_encoder, image_size)
            )
        self._ahead = 2 * workers

    def __enter__(self) -> _Encoding:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def blocks(self, camera: str, spans: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """The latents (n, C, h, w) float16 of each span of rows."""
        if self._pool is None:
            yield from (_encode_block(*self._here, camera, start, stop) for start, stop in spans)
            return
        waiting: deque[Future[np.ndarray]] = deque()
        for start, stop in spans:
            waiting.append(self._pool.submit(_encode_in_worker, camera, start, stop))
            if len(waiting) > self._ahead:  # not all at once: results wait in memory until they are written
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_worker: tuple[Store, ImageEncoder, int]  # of a process of the pool


def _start_worker(store: Store, make_encoder: Callable[[], ImageEncoder], image_size: int) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = (store, make_encoder(), image_size)


def _encode_in_worker(camera: str, start: int, stop: int) -> np.ndarray:
    return _encode_block(*_worker, camera, start, stop)


def _encode_block(
    store: Store, encoder: ImageEncoder, image_size: int, camera: str, start: int, stop: int
) -> np.ndarray:
    rgb = store.read(f"rgb_{camera}", start, stop)
    rgb = letterbox(rgb, image_size) if image_size else rgb
    with torch.inference_mode():
        return encoder.encode(torch.from_numpy(rgb)).float().cpu().numpy().astype(np.float16)


def _encode_camera(store: Store, group: zarr.Group, encoding: _Encoding, camera: str) -> Iterator[int]:
    """Encodes and commits one block after the other; yields the size of each."""
    name, attrs = f"latent_{camera}", group.attrs.asdict()
    starts = range(_rows_done(store, group.path, camera), store.n_rows, _FRAMES)
    spans = [(start, min(start + _FRAMES, store.n_rows)) for start in starts]
    for (start, stop), latent in zip(spans, encoding.blocks(camera, spans), strict=True):
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
        write_attrs(store.folder() / group.path, attrs)  # the commit
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
    root = open_root(store.path)  # afresh: zarr keeps the attributes that it has read
    return int(root[group].attrs.get("n_rows", {}).get(camera, 0)) if group in root else 0
