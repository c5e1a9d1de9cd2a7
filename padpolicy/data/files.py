"""Where a store is: a folder, or a place in an object store, which is only read (s3://, gs://, az://, http://, https://).

Object stores are reached through obstore (`pip install 'padpolicy[remote]'`), which repeats what failed. Keys, endpoints and
regions come from the environment, under the names that each provider uses (AWS_ACCESS_KEY_ID, AWS_ENDPOINT, …).
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import zarr


def is_url(path: str | Path) -> bool:
    return "://" in str(path)


def locate(path: str | Path) -> Path | str:
    """A folder as a Path, a URL as it is, without a slash at its end."""
    return str(path).rstrip("/") if is_url(path) else Path(path)


def open_root(path: Path | str, mode: str = "r") -> zarr.Group:
    """The zarr group at a folder or URL. Raises what zarr and the object store raise."""
    if isinstance(path, Path):
        return zarr.open_group(path, mode=mode)
    from zarr.storage import ObjectStore

    return zarr.open_group(ObjectStore(_remote(path), read_only=True), mode="r")


def read_file(path: Path | str, key: str) -> bytes | None:
    """The bytes of a file below a store; None where there is none."""
    if isinstance(path, Path):
        try:
            return (path / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
    import obstore

    try:
        return bytes(obstore.get(_remote(path), key).bytes())
    except FileNotFoundError:  # obstore's NotFoundError is one
        return None


def is_zarr(path: Path | str) -> bool:
    """Whether there is a zarr group, of either format. Raises what an object store raises."""
    return any(read_file(path, name) is not None for name in ("zarr.json", ".zgroup"))


def is_writable(path: Path | str) -> bool:
    return isinstance(path, Path) and os.access(path, os.W_OK)


@lru_cache(maxsize=32)
def _remote(url: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise ValueError(f"{url}: object stores need obstore: pip install 'padpolicy[remote]'.") from error
    plain = url.startswith("http://") or os.environ.get("AWS_ENDPOINT", os.environ.get("AWS_ENDPOINT_URL", "")).startswith(
        "http://"
    )
    return from_url(url, client_options={"allow_http": True} if plain else {})
