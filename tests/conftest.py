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
