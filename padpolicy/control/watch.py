"""The monitor in a process of its own: it never takes time from the loop, nor from the network that plans.

What it is told may wait in a queue, where the oldest is dropped; what it says is fetched when the loop comes around.
"""

from __future__ import annotations

import dataclasses
import queue
import signal
import threading
from collections import deque
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from padpolicy.config import MonitorConfig
from padpolicy.control.apart import start_apart
from padpolicy.control.planner import BrainError
from padpolicy.control.robot import Observation
from padpolicy.data.letterbox import fitted

if TYPE_CHECKING:
    from padpolicy.control.monitor import Score

_WAITING = 50  # observations


class Watch:
    """A monitor of one robot.

    Args:    checkpoint: run directory or name of a shipped policy.   threads: torch's; 0 leaves its choice.
    Raises:  BrainError if it cannot start: no thresholds, or those of another policy.
    """

    def __init__(self, checkpoint: str, cfg: MonitorConfig, device: str = "auto", threads: int = 1):
        self._pipe, self._process = start_apart("monitor", _watch, checkpoint, cfg, device, threads)
        try:
            failure = self._pipe.recv()
        except EOFError:
            failure = "the monitor's process ended while it started."
        if failure:
            raise BrainError(failure)
        self._scores: queue.SimpleQueue[Score] = queue.SimpleQueue()
        self._waiting: deque[Any] = deque(maxlen=_WAITING)
        self._told = threading.Semaphore(0)
        for work in (self._tell, self._hear):
            threading.Thread(target=work, daemon=True).start()

    def begin(self, task: str = "") -> None:
        """A new episode; the task chooses the thresholds."""
        while not self._scores.empty():
            self._scores.get()
        self._waiting.clear()
        self._put(("begin", task))

    def seen(self, observation: Observation) -> None:
        """What the robot saw. Returns at once."""
        self._put(("seen", observation))

    def poll(self) -> Score | None:
        """The next score, if there is one."""
        try:
            return self._scores.get_nowait()
        except queue.Empty:
            return None

    def _put(self, message: tuple[str, Any]) -> None:
        self._waiting.append(message)
        self._told.release()

    def _tell(self) -> None:
        while True:
            self._told.acquire()
            try:
                self._pipe.send(self._waiting.popleft())
            except IndexError:  # dropped meanwhile
                continue
            except OSError:
                return

    def _hear(self) -> None:
        while True:
            try:
                self._scores.put(self._pipe.recv())
            except (EOFError, OSError):
                return

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _watch(pipe: Connection, checkpoint: str, cfg: MonitorConfig, device: str, threads: int) -> None:
    """The monitor's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import torch

        from padpolicy.control.monitor import monitor_of

        if threads:
            torch.set_num_threads(threads)
        monitor = monitor_of(checkpoint, cfg, device)
        size = monitor.policy.spec.image_size
        pipe.send("")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    while True:
        try:
            kind, value = pipe.recv()
        except EOFError:
            return
        if kind == "begin":
            monitor.reset(task=value)
            continue
        monitor.observe(dataclasses.replace(value, fields=fitted(value.fields, size)))
        if not pipe.poll() and (score := monitor.judge()) is not None:  # only when it is not behind
            pipe.send(score)
