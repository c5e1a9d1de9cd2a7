"""A page in the browser about the running robot, with a button that stops it.

Whoever drives pushes what it has: references are kept, nothing is copied, and nobody waits. What a browser asks for is
put together in the web server's threads, so a slow browser, or fifty of them, keep only themselves waiting. The button
goes to the robot's own process (`stop_url`), and works even if this one hangs.

    GET /                       the page
    GET /state                  everything but pictures, as JSON: see `LivePage.state`
    GET /seen/CAMERA            the newest picture of camera number CAMERA, JPEG
    GET /imagined/CAMERA/FRAME  frame number FRAME of its imagined future, JPEG

Letters: n moments or waypoints, D numbers of a waypoint.
"""

from __future__ import annotations

import io
import json
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from padpolicy.config import ConfigError
from padpolicy.control.planner import Answer
from padpolicy.control.robot import Observation, Plan, Status
from padpolicy.evaluation import media

HISTORY_S = 5.0  # of motion that is shown
POINT_S = 0.02  # between two points of it, at the least
FAREWELL_S = 0.4  # open pages ask several times in this
REACTIONS = 200  # latest plans that the percentiles are of
SCORES = 120  # latest scores that are shown


class LivePage:
    """A page about the running robot, on localhost, until `close`.

    Args:   port: to listen on; 0 takes any free one.   stop_url: of the robot's process, which takes POST /stop.
            cameras: names, in the order in which they are shown.   names: of the D numbers of a waypoint.
            future_offsets_s: when the frames of an imagined future are, from the observation.
    Raises: ConfigError if the port is taken.
    """

    def __init__(
        self,
        port: int,
        stop_url: str,
        cameras: Sequence[str],
        names: Sequence[str],
        future_offsets_s: Sequence[float] = (),
    ):
        self._cameras = list(cameras)
        self._run = secrets.token_hex(8)
        setup = {
            "run": self._run,
            "stop_url": stop_url,
            "cameras": self._cameras,
            "names": list(names),
            "offsets_s": list(future_offsets_s),
            "history_s": HISTORY_S,
        }
        template = media.templates(Path(__file__).parent).get_template("page.html.j2")
        self._html = template.render(setup=setup).encode()
        self._lock = threading.Lock()
        self._seen: Observation | None = None
        self._future: dict[str, np.ndarray] = {}
        self._pictures = [0, 0]  # how often something was seen, and imagined: a browser fetches only what is new
        self._reactions_s: deque[float] = deque(maxlen=REACTIONS)
        self._pushed_at: float | None = None
        self._asked_at, self._ended = -np.inf, False
        self.episode(0, "")
        try:
            self._server = _Server(("127.0.0.1", port), _handler(self))
        except OSError as error:
            raise ConfigError(f"page_port={port}: {error}. page_port=0 takes any free one.") from None
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True, name="live page").start()

    # ------------------------------------------------------------------------------------------------ pushed

    def episode(self, number: int, instruction: str) -> None:
        """A new episode: motion, plan and scores begin anew. Pictures and reaction times stay until there are newer."""
        with self._lock:
            self._episode, self._instruction = number, instruction
            self._statuses: deque[Status] = deque()  # of the last HISTORY_S
            self._status: Status | None = None
            self._plan: Plan | None = None
            self._scores: deque[float] = deque(maxlen=SCORES)
            self._threshold, self._alarm = 0.0, False

    def seen(self, observation: Observation) -> None:
        """The robot saw something. Its `rgb_<camera>` are shown."""
        with self._lock:
            self._seen = observation
            self._pictures[0] += 1

    def planned(self, plan: Plan, answer: Answer, reaction_s: float) -> None:
        """A plan was sent, `reaction_s` after the observation behind it. An imagined future is shown until the next."""
        with self._lock:
            self._plan = plan
            self._reactions_s.append(reaction_s)
            if answer.future:
                self._future = answer.future
                self._pictures[1] += 1

    def status(self, status: Status) -> None:
        """How the robot is; the same one may come again."""
        with self._lock:
            self._status, self._pushed_at = status, time.monotonic()
            points = self._statuses
            if not points or status.time_s >= points[-1].time_s + POINT_S - 1e-9:
                points.append(status)
            while points[0].time_s < status.time_s - HISTORY_S:
                points.popleft()

    def score(self, value: float, threshold: float, alarm: bool) -> None:
        """What the monitor says of the last plan."""
        with self._lock:
            self._scores.append(value)
            self._threshold, self._alarm = threshold, alarm

    def close(self) -> None:
        """Stops serving, once open pages had the time to hear that it has ended."""
        self._ended = True
        if time.monotonic() - self._asked_at < 2:  # pages in the background ask once a second
            time.sleep(FAREWELL_S)
        self._server.shutdown()
        self._server.server_close()

    # ------------------------------------------------------------------------------------------------ asked for

    def state(self) -> dict[str, Any]:
        """Everything but pictures, ready for JSON; times in seconds on the robot's clock, what is not finite is None.

        Returns:  run: differs from that of a page left open from before, which then loads itself anew.
                  episode, instruction.   ended: whether `close` was called.
                  quiet_s: since the last status was pushed; None before the first.
                  status: as Status, without its arrays; None before the first.
                  history: times_s (n), commanded (n, D), measured (n, D).
                  plan: number, times_s (n), waypoints (n, D); None before the first.
                  reaction_ms: last, p50, p95; None before the first plan.
                  score: values (the latest ones), threshold, alarm; None before the first.
                  seen, imagined: versions of the pictures.   futures: imagined frames of each camera.
        """
        with self._lock:
            status, points, plan = self._status, list(self._statuses), self._plan
            reactions_ms = np.array(self._reactions_s) * 1e3
            values, threshold, alarm = list(self._scores), self._threshold, self._alarm
            state: dict[str, Any] = {
                "run": self._run,
                "episode": self._episode,
                "instruction": self._instruction,
                "ended": self._ended,
                "quiet_s": None if self._pushed_at is None else round(time.monotonic() - self._pushed_at, 3),
                "seen": self._pictures[0],
                "imagined": self._pictures[1],
                "futures": [len(self._future.get(camera, ())) for camera in self._cameras],
            }
        last = status.last if status else None
        state["status"] = status and {
            "time_s": status.time_s,
            "state": status.state,
            "reason": status.reason,
            "plan": status.plan,
            "interventions": dict(status.interventions),
            "last": last and {"time_s": last.time_s, "kind": last.kind, "detail": last.detail},
        }
        state["history"] = {
            "times_s": [point.time_s for point in points],
            "commanded": _numbers([point.commanded for point in points]),
            "measured": _numbers([point.measured for point in points]),
        }
        state["plan"] = plan and {
            "number": plan.number,
            "times_s": _numbers(plan.times_s),
            "waypoints": _numbers(plan.waypoints),
        }
        state["reaction_ms"] = state["score"] = None
        if len(reactions_ms):
            p50, p95 = np.quantile(reactions_ms, [0.5, 0.95])
            state["reaction_ms"] = {"last": _number(reactions_ms[-1]), "p50": _number(p50), "p95": _number(p95)}
        if values:
            state["score"] = {"values": _numbers(values), "threshold": _number(threshold), "alarm": bool(alarm)}
        return state

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Content type and body for a path; None if there is nothing."""
        what, *numbers = path.partition("?")[0].strip("/").split("/")
        if what in ("", "state") and not numbers:
            if what == "":
                return "text/html; charset=utf-8", self._html
            self._asked_at = time.monotonic()
            return "application/json", json.dumps(self.state(), allow_nan=False).encode()
        try:
            camera, *frame = [int(number) for number in numbers]
            name = self._cameras[camera]
            with self._lock:
                seen, future = self._seen, self._future
            if what == "seen" and not frame and seen is not None:
                return "image/jpeg", _jpeg(seen.fields[f"rgb_{name}"])
            if what == "imagined" and len(frame) == 1:
                return "image/jpeg", _jpeg(future[name][frame[0]])
        except (ValueError, LookupError):
            pass
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a browser that went away is nothing to report
            super().handle_error(request, client_address)


def _handler(page: LivePage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0  # seconds for a reader that does not read

        def do_GET(self) -> None:
            kind, body = page.answer(self.path) or ("text/plain", b"nothing here\n")
            self.send_response(404 if kind == "text/plain" else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _numbers(values: Any) -> list[Any]:
    """An array of one or two axes as lists."""
    array = np.round(np.asarray(values, np.float64), 6)
    listed = array.astype(object)
    listed[~np.isfinite(array)] = None
    return listed.tolist()


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()
