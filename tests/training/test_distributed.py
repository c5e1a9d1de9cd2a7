"""Two processes compute what one does at the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from padpolicy.data.dataset import BatchStream, open_mixture
from padpolicy.training import checkpoint
from padpolicy.training.distributed import World
from padpolicy.training.loop import train

STEPS = 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="two_ranks.py forks")
def test_two_processes_equal_one_at_the_same_global_batch(tiny, robot_store, video_store, tmp_path) -> None:
    mixed = [
        f"data.videos=[{video_store}]",
        "data.video_ratio=0.5",
        "diffusion.modes={policy:1,joint:1,forward:1,inverse:1}",
        f"training.steps={STEPS}",
        "training.batch_size=3",  # shares of 1 and 2
    ]
    cfg = tiny("one", *mixed)
    streams = [BatchStream(open_mixture(cfg.data, "mean8"), 3, cfg.seed, rank, 2) for rank in (0, 1)]
    robots = [["".join(stream[step].robot) != "" for stream in streams] for step in range(STEPS)]
    assert [True, False] in robots or [False, True] in robots  # somewhere a process leaves the action's layers unused

    train(cfg)
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, str(script), str(tmp_path / "two"), str(robot_store), *mixed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    one, two = (
        load_file(checkpoint.newest(path)[0] / "training.safetensors") for path in (Path(cfg.out), tmp_path / "two")
    )
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0, msg=name)


def test_one_process_needs_nobody() -> None:
    here, layer = World(), torch.nn.Linear(2, 2)
    assert here.leads and here.sum({"a": 2.0}, torch.device("cpu")) == {"a": 2.0}
    assert here.any(True, torch.device("cpu")) and not here.any(False, torch.device("cpu"))
    here.barrier()
    here.share(layer.parameters())
    here.sum_gradients(layer.parameters())
    assert all(parameter.grad is None for parameter in layer.parameters())
