"""Small stores with known contents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Episode, Store, StoreSpec

ACTION = ActionSpec("delta", ["x", "y", "yaw", "gripper"], 0.1, rotation="yaw", gripper="binary")
PROPRIO = ["x", "y", "sin_yaw"]
SIZE = 16


def make_spec(**changes) -> StoreSpec:
    camera = {"size": [SIZE, SIZE], "intrinsics": np.eye(3).tolist(), "extrinsics": None}
    values = {
        "cameras": {"front": camera, "wrist": camera},
        "depth_cameras": ["front"],
        "proprio": {"names": PROPRIO, "unit": "m, m, 1"},
        "action": ACTION,
        "robot": "arm",
        "renderer": "rays",
        "dt_s": 0.1,
        "tasks": [
            {"name": "push the cube", "paraphrases": ["push the cube", "shove the cube"], "held_out": False},
            {"name": "lift the cube", "paraphrases": ["lift the cube"], "held_out": False},
        ],
    }
    return StoreSpec(**values | changes)


def make_episode(number: int, spec: StoreSpec, length: int = 0) -> Episode:
    """Episode `number`: everything in it is a function of the number; action[:, 0] is 1000 * number + step."""
    rng = np.random.default_rng(number)
    n = length or int(rng.integers(5, 30))
    arrays = {"timestamp": np.arange(n) * 0.1}
    for camera in spec.cameras:
        arrays[f"rgb_{camera}"] = rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)
    for camera in spec.depth_cameras:
        arrays[f"depth_{camera}"] = rng.integers(1, 2000, (n, SIZE, SIZE), np.uint16)
    if spec.proprio is not None:
        arrays["proprio"] = rng.normal(size=(n, len(PROPRIO))).astype(np.float32)
    if spec.action is not None:
        action = rng.normal(size=(n, 4)).astype(np.float32)
        action[:, 0] = 1000 * number + np.arange(n)
        action[:, 3] = rng.integers(0, 2, n)
        arrays["action"] = action
    task = ("push the cube", "lift the cube")[number % 2]
    return Episode(arrays, task, success=number % 3 != 0, seed=number, source="test", id=f"e{number}")


def assert_same_episode(got: Episode, expected: Episode) -> None:
    assert set(got.arrays) == set(expected.arrays)
    for name, values in expected.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], values, err_msg=name)
    for name in ("task", "success", "seed", "source", "id"):
        assert getattr(got, name) == getattr(expected, name)


class Builder:
    """What a test needs to make stores, handed over as the fixture `build`."""

    spec = staticmethod(make_spec)
    episode = staticmethod(make_episode)
    assert_same = staticmethod(assert_same_episode)

    @staticmethod
    def store(
        path: Path, n: int = 4, zarr_format: int = 3, length: int = 0, all_succeed: bool = False, **changes
    ) -> Path:
        spec = make_spec(**changes)
        with Store.create(path, spec, zarr_format) as store:
            for i in range(n):
                episode = make_episode(i, spec, length)
                episode.success |= all_succeed
                store.append(episode)
        return path


@pytest.fixture
def build() -> Builder:
    return Builder()


@pytest.fixture
def new_store(tmp_path: Path, build: Builder) -> Callable[..., Path]:
    def make(n: int = 4, name: str = "s.zarr", **options) -> Path:
        return build.store(tmp_path / name, n, **options)

    return make
