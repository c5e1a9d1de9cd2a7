"""Processes beside the loop: the robot, the policy, the monitor."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any


def start_apart(name: str, main: Callable[..., None], *arguments: Any) -> tuple[Connection, BaseProcess]:
    """Starts `main(pipe, *arguments)` in a process of its own. Returns our end of the pipe, and the process.

    It is spawned, not forked: a fork would take torch's threads and GL contexts along. It dies with this one.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=main, args=(theirs, *arguments), daemon=True, name=f"padpolicy {name}")
    process.start()
    theirs.close()
    return ours, process
