"""`padpolicy serve`: a policy over websockets, as openpi's clients speak to one; docs/serve.md has the keys and errors.

    event loop    connections, /healthz, limits         never computes
    one worker    read, check, plan, write              a request at a time, first come first served

A connection has one request under way, so nobody gets a second turn before everybody who waits had one.

Letters: O observation steps, T action steps, A action dims, P proprio dims, H W picture size.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import logging
import os
import signal
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as open_port
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from padpolicy import __version__
from padpolicy.config import API_KEY_VARIABLE, ConfigError, ServeConfig
from padpolicy.control import wire
from padpolicy.control.chunking import ObservationBuffer
from padpolicy.control.planner import Brain, Request, blank
from padpolicy.data.letterbox import letterbox
from padpolicy.sample import Sample
from padpolicy.spec import PolicySpec

log = logging.getLogger("padpolicy.serve")

EXTRA = "padpolicy/"  # begins every key that openpi does not know
LARGEST = 2**63 - 1
MAX_PROMPT = 1000  # characters
MAX_VALUE = 1e6  # of a number that the policy reads: no unit of a robot needs more, and the network would overflow
MAX_GUIDANCE = 100.0
LINES_PER_S = 10  # of the log, at most: strangers must not fill the disk


class BadRequest(ValueError):
    """A request that cannot be answered; its text is for the client: what was expected, what came."""


class Session:
    """What one connection is remembered by: its history and how many plans it had. Used by the worker thread only.

    Args:  imagines: whether future frames may be asked for.
    """

    def __init__(self, brain: Brain, spec: PolicySpec, cfg: ServeConfig, imagines: bool):
        self.brain, self.spec, self.cfg, self.imagines = brain, spec, cfg, imagines
        self.prev_total_ms: float | None = None  # of the request before, until its answer was sent
        self._reset()

    def answer(self, data: bytes, received_s: float) -> bytes:
        """One request, as it came over the wire, to one response.

        Args:    received_s: when it came, on time.perf_counter's clock.
        Raises:  BadRequest if it cannot be answered.
        """
        begun_s = time.perf_counter()
        try:
            message = wire.unpack(data)
        except wire.WireError as error:
            raise BadRequest(str(error)) from None
        request, echo = self._read(message)
        asked_s = time.perf_counter()
        answer = self.brain(request)
        infer_ms = 1e3 * (time.perf_counter() - asked_s)
        actions, expected = np.asarray(answer.chunk_TA, np.float32), (self.spec.chunk_steps, self.spec.action_dim)
        if actions.shape != expected or not np.isfinite(actions).all():
            raise RuntimeError(f"the policy planned {actions.shape}, expected {expected}, all of it finite.")
        self._plans = request.number + 1
        timings_ms = {**answer.timings_ms, "queue": 1e3 * (begun_s - received_s), "read": 1e3 * (asked_s - begun_s)}
        before = {} if self.prev_total_ms is None else {"prev_total_ms": self.prev_total_ms}
        reply = {
            "actions": actions,
            "policy_timing": {"infer_ms": infer_ms},
            "server_timing": {"infer_ms": infer_ms, **before},
            f"{EXTRA}timings_ms": timings_ms,
            f"{EXTRA}number": request.number,
            **echo,
        }
        if request.imagine:
            reply[f"{EXTRA}future"] = answer.future
        return wire.pack(reply)

    def _reset(self) -> None:
        self._buffer, self._plans, self._stamped = ObservationBuffer.of(self.spec), 0, False

    def _read(self, message: Any) -> tuple[Request, dict[str, Any]]:
        """The request, and what of it is echoed."""
        if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
            raise BadRequest(f"a request is a map from names to values, got {_brief(message)}.")
        extras = {key: value for key, value in message.items() if key.startswith(EXTRA)}
        if unknown := [key for key in extras if key not in EXTRAS]:
            raise BadRequest(f"unknown key {_brief(unknown[0])}; this server knows {', '.join(EXTRAS)}.")
        given = {key.removeprefix(EXTRA): EXTRAS[key](key, value) for key, value in extras.items()}
        if given.get("imagine") and not self.imagines:
            raise BadRequest(f"{EXTRA}imagine: this policy did not learn to imagine and act together.")
        if given.get("steps", 0) > self.cfg.max_steps:
            raise BadRequest(f"{EXTRA}steps is {given['steps']}: at most {self.cfg.max_steps} (max_steps).")
        prompt = _there(message, "prompt")
        if prompt is not None and (not isinstance(prompt, str) or len(prompt) > MAX_PROMPT):
            raise BadRequest(f"prompt is {_brief(prompt)}: expected at most {MAX_PROMPT} characters, or None.")
        if given.get("reset"):
            self._reset()
        sample = self._sample(message, prompt, given)
        prefix = given.get("prefix")
        steps = 0 if prefix is None else len(prefix)
        if prefix is not None:
            prefix = self._padded(prefix)
        request = Request(
            sample,
            observed_at_s=given.get("time_s", 0.0),
            number=given.get("number", self._plans),
            seed=given.get("seed", self.cfg.seed),
            prefix=prefix,
            prefix_len=steps,
            imagine=given.get("imagine", False),
            steps=given.get("steps", 0),
            guidance=given.get("guidance", 0.0),
            temperature=given.get("temperature", 1.0),
        )
        return request, {EXTRA + key: given[key] for key in ("seq", "time_s") if key in given}

    def _sample(self, message: dict[str, Any], prompt: str | None, given: dict[str, Any]) -> Sample:
        """What is seen: as it was sent if that has its history with it, else with what was seen before."""
        spec = self.spec
        fields, stacked = {}, {}
        for name in observed(spec):
            value = _there(message, name)
            if value is not None:  # None: there is no such picture now
                fields[name], stacked[name] = self._field(name, value)
        if len(set(stacked.values())) > 1:
            raise BadRequest(
                "some fields have a time axis and some not: " + ", ".join(k for k in stacked if stacked[k])
            )
        if any(stacked.values()):
            is_pad = given.get("is_pad", np.zeros(spec.obs_steps, bool))
            if len(is_pad) != spec.obs_steps:
                raise BadRequest(f"{EXTRA}is_pad has {len(is_pad)} entries: expected {spec.obs_steps}, one per frame.")
            offsets = (np.arange(spec.obs_steps) - (spec.obs_steps - 1)) * spec.dt_s
            there = {f"obs.{name}": value for name, value in fields.items()}
            return Sample(there, {"obs": is_pad}, {"obs": offsets.astype(np.float32)}, prompt, spec.robot)
        if "is_pad" in given:
            raise BadRequest(f"{EXTRA}is_pad goes with fields that have a time axis of {spec.obs_steps} steps.")
        stamped = "time_s" in given
        if len(self._buffer) and stamped != self._stamped:
            raise BadRequest(f"{EXTRA}time_s: give it with every request of an episode, or with none.")
        self._stamped = stamped
        try:
            self._buffer.push(given["time_s"] if stamped else time.monotonic(), fields)
        except ValueError as error:
            raise BadRequest(f"{EXTRA}time_s: {error}") from None
        return self._buffer.sample(spec, prompt, spec.robot)

    def _field(self, name: str, value: Any) -> tuple[np.ndarray, bool]:
        """One observed field as the policy takes it, and whether it has a time axis."""
        spec, steps = self.spec, self.spec.obs_steps
        kind, layout, axes = "u1", "(H, W, 3) uint8", 3
        tail: tuple[int, ...] = (3,)
        if name.startswith("depth_"):
            kind, layout, axes, tail = "u2", "(H, W) uint16 millimetres", 2, ()
        elif name == "proprio":
            kind, layout, axes, tail = "", f"({spec.proprio_dim},) float32", 1, (spec.proprio_dim,)
        ok = isinstance(value, np.ndarray) and value.ndim in (axes, axes + 1) and 0 not in value.shape
        ok = ok and (value.dtype.str[1:] == kind if kind else value.dtype.kind in "fiu")
        ok = ok and value.shape[value.ndim - len(tail) :] == tail and (value.ndim == axes or len(value) == steps)
        if not ok:
            raise BadRequest(f"{name}: expected {layout}, or {steps} of them, oldest first; got {_brief(value)}.")
        if kind:
            value = letterbox(value.astype(np.dtype(kind), copy=False), spec.image_size)
        else:
            value = _finite(name, value)
        return value, value.ndim > axes

    def _padded(self, prefix_nA: np.ndarray) -> np.ndarray:
        """The known actions (n, A) as the start of a chunk (T, A)."""
        T, A = self.spec.chunk_steps, self.spec.action_dim
        if prefix_nA.ndim != 2 or prefix_nA.shape[1] != A or len(prefix_nA) > T:
            raise BadRequest(f"{EXTRA}prefix: expected (n <= {T}, {A}) numbers, got {_brief(prefix_nA)}.")
        return np.concatenate([prefix_nA, np.zeros((T - len(prefix_nA), A), np.float32)])


class Server:
    """One brain for many connections.

    Args:  brain: answers requests of `spec`, one at a time, in one thread.
           imagines: whether it can also say what will be seen.
    """

    def __init__(self, cfg: ServeConfig, brain: Brain, spec: PolicySpec, imagines: bool):
        self.cfg, self.brain, self.spec, self.imagines = cfg, brain, spec, imagines
        self._key = (cfg.api_key or os.environ.get(API_KEY_VARIABLE, "")).encode()
        self._hello = wire.pack(metadata(spec, cfg, imagines))
        self._worker = ThreadPoolExecutor(1, "policy")
        self._port: WebSocketServer | None = None

    async def run(self, stop: asyncio.Event, opened: Callable[[int], None] = lambda port: None) -> None:
        """Warms up, opens the port, calls `opened` with its number, and serves until `stop`.

        Raises:  ConfigError if the port or the certificate cannot be used.
        """
        cfg, secure = self.cfg, _tls(self.cfg)
        await asyncio.get_running_loop().run_in_executor(self._worker, self._warm_up)
        try:
            self._port = await open_port(
                self._connected,
                cfg.host,
                cfg.port,
                process_request=self._admit,
                origins=[None],  # a browser says where its page is from; no page has business with a robot
                compression=None,
                server_header=None,
                open_timeout=cfg.handshake_s,
                ping_interval=cfg.ping_s,
                ping_timeout=cfg.ping_s,
                close_timeout=5,
                max_size=cfg.max_message_mb * 2**20,
                max_queue=1,  # a client waits for its answer before it asks again
                logger=_quiet(),
                ssl=secure,
                ssl_handshake_timeout=cfg.handshake_s if secure else None,
            )
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise ConfigError(f"host={cfg.host} port={cfg.port} cannot be opened ({why}). Choose another.") from None
        try:
            async with self._port:
                opened(next(iter(self._port.sockets)).getsockname()[1])
                await stop.wait()
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)

    def _warm_up(self) -> None:
        """One plan of every kind, so that no client waits for what happens only once."""
        for imagine in [False, True][: 1 + self.imagines]:
            self.brain(Request(blank(self.spec), observed_at_s=0.0, number=0, imagine=imagine))

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """What is answered before a connection becomes a websocket; None lets it."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._key and not _shows(request, self._key):
            response = connection.respond(http.HTTPStatus.UNAUTHORIZED, "Expected Authorization: Api-Key <key>.\n")
            response.headers["WWW-Authenticate"] = "Api-Key"
            return response
        assert self._port is not None  # it is what called this
        if len(self._port.connections) >= self.cfg.max_connections:
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, f"All {self.cfg.max_connections} connections are in use.\n"
            )
        return None

    async def _connected(self, connection: ServerConnection) -> None:
        """One connection, from the metadata to its end."""
        session = Session(self.brain, self.spec, self.cfg, self.imagines)
        who, begun_s, answered, why = connection.remote_address, time.monotonic(), 0, "gone"
        try:
            await connection.send(self._hello)
            while True:
                async with asyncio.timeout(self.cfg.idle_s):
                    data = await connection.recv()
                received_s = time.perf_counter()
                if isinstance(data, str):
                    raise BadRequest("a text frame; a request is one binary frame of msgpack.")
                reply = await self._think(connection, session, data, received_s)
                if reply is None:
                    break
                await connection.send(reply)
                session.prev_total_ms = 1e3 * (time.perf_counter() - received_s)
                answered += 1
        except ConnectionClosed as closed:
            why = f"closed {closed.sent.code if closed.sent else closed.rcvd.code if closed.rcvd else 'without a word'}"
        except TimeoutError:
            why = "idle"
            await connection.close(1000, f"idle for {self.cfg.idle_s:g} s")
        except BadRequest as error:
            why = f"bad request: {error}"
            await _refuse(connection, why)
        except Exception:
            why = "internal error"
            log.exception("%s: request %d failed", who, answered + 1)
            await _refuse(connection, "internal error: the server's log says what failed.")
        log.info("%s: %d answers in %.1f s, %s", who, answered, time.monotonic() - begun_s, why)

    async def _think(
        self, connection: ServerConnection, session: Session, data: bytes, received_s: float
    ) -> bytes | None:
        """The answer; None if the client has gone. What it asked leaves the queue with it."""
        thought = asyncio.get_running_loop().run_in_executor(self._worker, session.answer, data, received_s)
        gone = asyncio.ensure_future(connection.wait_closed())
        both: set[asyncio.Future[Any]] = {thought, gone}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return thought.result() if thought.done() else None
        finally:
            gone.cancel()
            thought.cancel()


def serve(cfg: ServeConfig, brain: Brain, spec: PolicySpec, imagines: bool) -> None:
    """Serves until SIGTERM or SIGINT (a second one does not wait), and says where it listens."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.addFilter(AtMost())
    for logger in (log, logging.getLogger("asyncio")):  # asyncio tells of broken TLS handshakes
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False

    async def main() -> None:
        stop, loop, signals = asyncio.Event(), asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)

        def end() -> None:
            stop.set()
            for number in signals:
                loop.remove_signal_handler(number)

        for number in signals:
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, end)

        def opened(port: int) -> None:
            host = f"[{cfg.host}]" if ":" in cfg.host else cfg.host
            url = f"{'wss' if cfg.certfile else 'ws'}://{host}:{port}"
            print(f"Serving {cfg.checkpoint} at {url}. Ctrl-C ends it.", flush=True)

        await Server(cfg, brain, spec, imagines).run(stop, opened)

    asyncio.run(main())
    print("Stopped.")


def observed(spec: PolicySpec) -> list[str]:
    """The observation's names in a request."""
    names = [f"rgb_{camera}" for camera in spec.cameras] + [f"depth_{camera}" for camera in spec.depth_cameras]
    return names + ["proprio"] * bool(spec.proprio_dim)


def metadata(spec: PolicySpec, cfg: ServeConfig, imagines: bool) -> dict[str, Any]:
    """What a client is told when it connects: what the policy is, what to send and what comes back."""
    size = spec.image_size
    shapes = {name: ["uint8", [size, size, 3]] for name in observed(spec)}
    shapes |= {f"depth_{camera}": ["uint16", [size, size]] for camera in spec.depth_cameras}
    if spec.proprio_dim:
        shapes["proprio"] = ["float32", [spec.proprio_dim]]
    return {
        "server": "padpolicy",
        "version": __version__,
        "spec": asdict(spec),
        "observation": {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in shapes.items()},
        "action": {**spec.action, "shape": [spec.chunk_steps, spec.action_dim], "dt_s": spec.dt_s},
        "extras": [key for key in EXTRAS if imagines or key != f"{EXTRA}imagine"],
        "max_message_bytes": cfg.max_message_mb * 2**20,
    }


class AtMost(logging.Filter):
    """Lets LINES_PER_S lines a second through."""

    def __init__(self) -> None:
        super().__init__()
        self._second, self._lines = 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        if int(record.created) != self._second:
            self._second, self._lines = int(record.created), 0
        self._lines += 1
        return self._lines <= LINES_PER_S


def _quiet() -> logging.Logger:
    """For the library: a stranger's broken handshake is no error of ours. What matters is logged here."""
    logger = logging.getLogger("padpolicy.serve.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger


def _tls(cfg: ServeConfig) -> ssl.SSLContext | None:
    if not cfg.certfile:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cfg.certfile, cfg.keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"certfile={cfg.certfile}, keyfile={cfg.keyfile}: {error.strerror or error}. Expected a certificate chain "
            "and its private key, in PEM."
        ) from None
    return context


def _shows(request: HttpRequest, key: bytes) -> bool:
    """Whether the request has the key, compared in a time that does not depend on where it differs."""
    values = request.headers.get_all("Authorization")
    scheme, _, shown = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return hmac.compare_digest(shown.encode(errors="replace"), key) and scheme.lower() == "api-key"


async def _refuse(connection: ServerConnection, text: str) -> None:
    """An error as openpi's clients understand it: a text frame, and the end of the connection."""
    with contextlib.suppress(ConnectionClosed):
        await connection.send(text)
        await connection.close(1011, "see the text frame before")


def _there(message: dict[str, Any], key: str) -> Any:
    if key not in message:
        raise BadRequest(f"{key!r} is missing; there are {_brief(sorted(message))}. Send None where there is none.")
    return message[key]


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"{type(value).__name__} {repr(value)[:100]}"


def _finite(key: str, value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    if not (np.abs(value) <= MAX_VALUE).all():
        raise BadRequest(f"{key} has values that are NaN, infinite or beyond {MAX_VALUE:g}.")
    return value


def _whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= LARGEST:
        raise BadRequest(f"{key} is {_brief(value)}: expected a whole number from 0 to {LARGEST}.")
    return int(value)


def _real(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise BadRequest(f"{key} is {_brief(value)}: expected a number.")
    if not np.isfinite(float(value)):
        raise BadRequest(f"{key} is {value}: expected a finite number.")
    return float(value)


def _scale(key: str, value: Any) -> float:
    if abs(_real(key, value)) > MAX_GUIDANCE:
        raise BadRequest(f"{key} is {value}: expected at most {MAX_GUIDANCE:g}.")
    return float(value)


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise BadRequest(f"{key} is {_brief(value)}: expected true or false.")
    return bool(value)


def _numbers(key: str, value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise BadRequest(f"{key} is {_brief(value)}: expected an array of numbers.")
    return _finite(key, value)


def _flags(key: str, value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind != "b" or value.ndim != 1:
        raise BadRequest(f"{key} is {_brief(value)}: expected a row of truth values.")
    return value != 0


EXTRAS: dict[str, Callable[[str, Any], Any]] = {
    f"{EXTRA}seq": _whole,  # echoed
    f"{EXTRA}time_s": _real,  # when the cameras saw it, on the client's clock: keeps the history; echoed
    f"{EXTRA}is_pad": _flags,  # (O,) with fields that have a time axis: True where a frame repeats another
    f"{EXTRA}reset": _flag,  # a new episode: history and plan number start again
    f"{EXTRA}number": _whole,  # of the plan since the reset; counted by the server if absent
    f"{EXTRA}seed": _whole,  # with the number, keys the plan's noise
    f"{EXTRA}prefix": _numbers,  # (n, A) actions that will run anyway
    f"{EXTRA}imagine": _flag,  # also answer what will be seen
    f"{EXTRA}steps": _whole,  # sampling steps; 0: the policy's own
    f"{EXTRA}guidance": _scale,  # scale over text; 0: the policy's own
    f"{EXTRA}temperature": _scale,  # of the noise that the plan starts from
}
