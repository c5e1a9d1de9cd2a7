"""Runs of seconds on stores of random pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_run import make_store, settings, use_exact_encoders

from padpolicy import config


@pytest.fixture(autouse=True)
def exact_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    use_exact_encoders(monkeypatch.setattr)


@pytest.fixture(scope="session")
def robot_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores") / "robot.zarr")


@pytest.fixture(scope="session")
def video_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores") / "video.zarr", robot=False)


@pytest.fixture(scope="session")
def one_episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores") / "one.zarr", episodes=1)


@pytest.fixture
def tiny(tmp_path: Path, robot_store: Path) -> Callable[..., config.TrainConfig]:
    """`tiny("name", "training.steps=4", ...)`: settings of a run in its own folder."""
    return lambda name, *overrides: settings(tmp_path / name, robot_store, *overrides)
