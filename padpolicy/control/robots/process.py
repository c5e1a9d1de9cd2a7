"""A robot in a process of its own, in real time: what crosses the boundary, and the process behind it.

The process owns the arm. It answers nothing and waits for nobody: it takes in what came, runs the servo cycles that are
due, and a thread sends the newest observation and status out; a reader that hangs stops that thread, never the arm.
A human can stop it through the controller, through its own HTTP port (POST /stop) or by a signal (SIGINT, SIGTERM).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

from padpolicy.config import RobotConfig
from padpolicy.control.apart import start_apart
from padpolicy.control.robot import Observation, Plan, RobotSpec, Status
from padpolicy.control.robots.side import Side, make_arm

START_S = 60.0  # an arm may take so long to be found, homed or simulated
STATUS_HZ = 25.0


class RobotError(ConnectionError):
    """The robot's process has ended, or could not start: says why."""


class RobotProcess:
    """The policy's side of a robot. Raises RobotError from any call once the process has gone.

    Args:  cfg: which arm, its rates and limits.
    """

    def __init__(self, cfg: RobotConfig):
        self._pipe, self._process = start_apart("robot", _main, cfg)
        self._newest: Observation | None = None
        self._status: Status | None = None
        self._episode, self._reached = 0, 0
        self._changed = threading.Condition()
        self._gone = ""
        if not self._pipe.poll(START_S):
            self._process.kill()
            raise RobotError(f"the robot's process said nothing for {START_S:g} s after its start.")
        try:
            kind, first = self._pipe.recv()
        except EOFError:
            raise RobotError("the robot's process ended while it started; see its output above.") from None
        if kind == "failed":
            raise RobotError(first)
        self.spec: RobotSpec
        self.stop_url: str
        self.spec, self.stop_url = first
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the robot's process."""
        return self._process.pid or 0

    def _read(self) -> None:
        while True:
            try:
                kind, episode, value = self._pipe.recv()
            except (EOFError, OSError):
                self._gone = self._gone or "the robot's process has ended."
                with self._changed:
                    self._changed.notify_all()
                return
            with self._changed:
                if kind == "failed":
                    self._gone = value
                elif episode >= self._reached:
                    self._reached = episode
                    if kind == "observation":
                        self._newest = value
                    else:
                        self._status = value
                self._changed.notify_all()

    def _send(self, *message: Any) -> None:
        if self._gone:
            raise RobotError(self._gone)
        try:
            self._pipe.send(message)
        except OSError:
            raise RobotError(self._gone or "the robot's process has ended.") from None

    def reset(self, options: Mapping[str, Any] | None = None) -> Status:
        self._episode += 1
        self._newest = self._status = None
        self._reached = self._episode
        self._send("reset", self._episode, dict(options or {}))
        with self._changed:
            ready = self._changed.wait_for(
                lambda: self._gone or (self._status is not None and self._newest is not None), START_S
            )
        if self._gone:
            raise RobotError(self._gone)
        if not ready or self._status is None:
            raise RobotError(f"the robot was not ready {START_S:g} s after a reset.")
        return self._status

    def observe(self) -> Observation | None:
        return self._newest

    def command(self, plan: Plan) -> None:
        self._send("plan", plan)

    def beat(self) -> None:
        self._send("beat")

    def stop(self, reason: str) -> None:
        self._send("stop", reason)

    def status(self) -> Status:
        if self._gone:
            raise RobotError(self._gone)
        if self._status is None:
            raise RobotError("RobotProcess.status: call reset() first.")
        return self._status

    def close(self) -> None:
        with contextlib.suppress(OSError, RobotError):
            self._send("close")
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()


# ------------------------------------------------------------------------------------------- the robot's process


def _main(pipe: Connection, cfg: RobotConfig) -> None:
    stops: queue.SimpleQueue[str] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: stops.put(f"signal {signal.Signals(n).name}"))
    try:
        side = Side(make_arm(cfg), cfg)
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
        return
    loop = _Loop(pipe, side, stops)
    web = _Web(cfg.http_port, loop)
    try:
        pipe.send(("ready", (side.spec, web.url)))
        loop.run()
    except Exception:
        with contextlib.suppress(OSError):
            pipe.send(("failed", loop.episode, traceback.format_exc()))
    finally:
        web.close()
        loop.close()
        side.close()
        os._exit(0)  # a thread of some driver must not keep the process, and there is nothing left to tidy


class _Loop:
    """Servo cycles against the wall clock, and what comes and goes between them."""

    def __init__(self, pipe: Connection, side: Side, stops: queue.SimpleQueue[str]):
        self.pipe, self.side, self.stops = pipe, side, stops
        self.episode, self.running, self.connected = 0, False, True
        self._out: dict[str, Any] = {}  # the newest of each kind that has not been sent
        self._new = threading.Condition()
        self._over = False
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()

    def close(self) -> None:
        """Ends the thread that sends, unless a reader that hangs holds it."""
        with self._new:
            self._over = True
            self._new.notify()
        self._sender.join(timeout=1)

    def run(self) -> None:
        next_status = 0.0
        while self.connected or self.running and not self._at_rest():
            if self.connected:
                self._take()
            while not self.stops.empty():
                reason = self.stops.get()
                if self.running:
                    self.side.safety.stop(self.side.now_s, reason)
            if not self.running:
                self.pipe.poll(0.05)
                continue
            newest = self.side.newest
            self.side.advance(time.monotonic())
            if self.side.newest is not newest:
                self._publish("observation", self.side.newest)
            if self.side.now_s >= next_status:
                next_status = self.side.now_s + 1 / STATUS_HZ
                self._publish("status", self.side.status())
            time.sleep(max(self.side.now_s + self.side.dt_s - time.monotonic(), 0))

    def _at_rest(self) -> bool:
        """Stopped, and braked to a stand: then the process may end."""
        safety = self.side.safety
        return safety.state == "stopped" and not safety.limiter.velocity.any()

    def _take(self) -> None:
        """Takes in what has come; at most a thousand messages, so that a flood cannot keep it from the arm."""
        for _ in range(1000):
            try:
                if not self.pipe.poll():
                    return
                message = self.pipe.recv()
            except (EOFError, OSError):
                self.connected = False  # nobody is there any more: the silence stops the arm
                return
            except Exception:  # something that cannot be read is no plan
                continue
            kind, *rest = message
            if kind == "close":
                if self.running:
                    self.side.safety.stop(self.side.now_s, "closed")
                self.connected = False
                return
            if kind == "reset":
                self.episode = rest[0]
                self.side.reset(time.monotonic(), rest[1])
                self.running = True
                self._publish("observation", self.side.newest)
                self._publish("status", self.side.status())
            elif kind == "plan" and self.running:
                self.side.offer(rest[0])
            elif kind == "beat" and self.running:
                self.side.safety.beat(self.side.now_s)
            elif kind == "stop" and self.running:
                self.side.safety.stop(self.side.now_s, str(rest[0]))

    def _publish(self, kind: str, value: Any) -> None:
        with self._new:
            self._out[kind] = (kind, self.episode, value)
            self._new.notify()

    def _send(self) -> None:
        while True:
            with self._new:
                self._new.wait_for(lambda: self._out or self._over)
                if self._over:
                    return
                out, self._out = list(self._out.values()), {}
            for message in out:
                try:
                    self.pipe.send(message)
                except OSError:
                    return


class _Web:
    """POST /stop and GET /status, on localhost."""

    def __init__(self, port: int, loop: _Loop):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if self.path == "/stop":
                    loop.stops.put("HTTP")
                self._answer(200 if self.path == "/stop" else 404, {"stopping": self.path == "/stop"})

            def do_GET(self) -> None:
                if self.path == "/status":
                    safety = loop.side.safety
                    self._answer(
                        200,
                        {
                            "state": safety.state if loop.running else "waiting",
                            "reason": safety.reason if loop.running else "no episode yet",
                            "interventions": dict(safety.interventions) if loop.running else {},
                        },
                    )
                else:
                    self._answer(404, {"error": "POST /stop or GET /status"})

            def _answer(self, code: int, body: dict[str, Any]) -> None:
                text = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.send_header("Access-Control-Allow-Origin", "*")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
