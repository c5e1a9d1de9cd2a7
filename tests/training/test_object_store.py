"""Training from an object store is training from disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tiny_run import make_store, settings

from padpolicy.training.loop import train

STEPS = int(os.environ.get("PADPOLICY_OBJECT_STORE_STEPS", "12"))


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines() if "loss" in line]


def test_the_same_losses_as_from_disk(bucket, tmp_path) -> None:
    store = make_store(tmp_path / "there.zarr")
    few = f"training.steps={STEPS}"
    train(settings(tmp_path / "disk", store, few))
    train(settings(tmp_path / "s3", bucket(store), few))
    assert len(losses(tmp_path / "disk")) == STEPS
    assert losses(tmp_path / "disk") == losses(tmp_path / "s3")
