"""Stores in an object store: a real S3 protocol server (moto) and a plain web server, each in this process."""

from __future__ import annotations

import functools
import http.server
import pickle
import threading

import numpy as np
import pytest

from padpolicy.data.files import is_url, locate, read_file
from padpolicy.data.latents import encode_store
from padpolicy.data.layout import StoreError
from padpolicy.data.store import Store
from padpolicy.data.validate import validate


def test_a_store_in_s3_reads_as_on_disk(new_store, bucket, build):
    path = new_store(3)
    store = Store.open(bucket(path))
    assert store.n_episodes == 3
    for i in range(3):
        build.assert_same(store.episode(i), build.episode(i, build.spec()))
    again = pickle.loads(pickle.dumps(store))  # what a loader's process gets
    np.testing.assert_array_equal(again.read("action", 0, 5), store.read("action", 0, 5))
    assert not [finding for finding in validate(store.path) if finding.level == "error"]


def test_a_flipped_bit_in_s3_is_an_error(new_store, bucket):
    path = new_store(3)
    chunk = next((path / "data" / "rgb_front").glob("c.*"))
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(StoreError, match=r"data/rgb_front: rows .* Restore s3://robots/s.zarr/data/rgb_front/c"):
        Store.open(bucket(path)).episode(0)


def test_what_is_not_there_or_not_written_says_so(new_store, bucket):
    url = bucket(new_store(1))
    with pytest.raises(StoreError, match="s3://robots/none: there is nothing at this path"):
        Store.open("s3://robots/none")
    with pytest.raises(StoreError, match="s3://no-such-bucket/x.zarr: there is nothing at this path"):
        Store.open("s3://no-such-bucket/x.zarr")
    with pytest.raises(StoreError, match="in an object store, where nothing is written"):
        Store.open(url, "a")

    class Encoder:
        fingerprint = "f"

    with pytest.raises(StoreError, match="nothing is written into an object store"):
        encode_store(url, Encoder(), ["front"])


def test_a_store_behind_a_web_server(new_store, tmp_path, build):
    new_store(2)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        store = Store.open(f"http://127.0.0.1:{server.server_port}/s.zarr/")
        build.assert_same(store.episode(1), build.episode(1, build.spec()))
    finally:
        server.shutdown()
        server.server_close()


def test_paths(tmp_path):
    assert is_url("s3://a/b") and not is_url("/a/b")
    assert locate("s3://a/b/") == "s3://a/b" and locate(str(tmp_path)) == tmp_path
    assert read_file(tmp_path, "x") is None and read_file(tmp_path / "x", "y") is None
