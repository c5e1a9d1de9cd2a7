"""Closed-loop evaluation: rollouts, numbers with intervals, and a page about them.

Importing this package imports no torch: the processes that step environments need none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from padpolicy.config import EvalConfig
    from padpolicy.policy import Policy


def evaluate(cfg: EvalConfig, policy: Policy | None = None) -> dict[str, Any]:
    """Runs an evaluation and writes results.json, videos/ and index.html into `cfg.out`; see evaluation/run.py."""
    from padpolicy.evaluation import run

    return run.evaluate(cfg, policy)
