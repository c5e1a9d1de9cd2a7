"""One thread per process (two busy processes with two threads each are slower than one), and the markers' meaning."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch or numpy start their pools
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network

import hypothesis
import pytest

hypothesis.settings.register_profile("padpolicy", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("padpolicy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; give --slow"))
        if "gpu" in item.keywords:
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def s3_server():
    """The endpoint of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """An empty bucket, and the environment that leads to it."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1")
    client.create_bucket(Bucket="robots")

    def upload(path):
        for file in path.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), "robots", f"{path.name}/{file.relative_to(path).as_posix()}")
        return f"s3://robots/{path.name}"

    yield upload
    for found in client.list_objects_v2(Bucket="robots").get("Contents", []):
        client.delete_object(Bucket="robots", Key=found["Key"])
    client.delete_bucket(Bucket="robots")
