"""A real server on a free port of this machine, with policies of the tests: answers, limits, and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakePolicy
from small import ACTION, CHUNK, robot_sample, small_policy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from padpolicy import config
from padpolicy.control import server, wire
from padpolicy.control.client import RemoteBrain
from padpolicy.control.planner import Answer, Beside, Brain, LocalBrain, Request
from padpolicy.control.server import Server
from padpolicy.data.letterbox import letterbox
from padpolicy.sample import Sample
from padpolicy.saving import save_policy

WAIT_S = 30.0  # for what happens at once unless something is broken
Serve = Callable[..., int]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(config.API_KEY_VARIABLE, raising=False)


@contextlib.contextmanager
def served(brain: Brain, spec, imagines: bool = True, **settings) -> Iterator[int]:
    """A server in a thread; yields its port."""
    cfg = config.ServeConfig(**({"checkpoint": "x", "port": 0} | settings))
    config.check(cfg)
    port: list[int] = []
    ready, stop, loops = threading.Event(), asyncio.Event(), []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await Server(cfg, brain, spec, imagines).run(stop, lambda number: (port.append(number), ready.set()))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(WAIT_S)
    try:
        yield port[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(WAIT_S)
        assert not thread.is_alive()


@contextlib.contextmanager
def speaking(port: int, **options) -> Iterator[tuple[ClientConnection, dict]]:
    """A connection as openpi's client makes one, and what the server said first."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None, **options) as connection:
        yield connection, wire.unpack(connection.recv(timeout=WAIT_S))


def infer(connection: ClientConnection, request: dict) -> dict:
    """As openpi's client does."""
    connection.send(wire.pack(request))
    reply = connection.recv(timeout=WAIT_S)
    if isinstance(reply, str):
        raise RuntimeError(reply)
    return wire.unpack(reply)


def refused(connection: ClientConnection, message: bytes | str) -> str:
    """What the server says of a request that it does not answer, before it ends the connection."""
    connection.send(message)
    text = connection.recv(timeout=WAIT_S)
    assert isinstance(text, str)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(timeout=WAIT_S)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
    return text


def get(port: int, path: str) -> tuple[int, bytes]:
    query = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    query.request("GET", path)
    reply = query.getresponse()
    body = reply.read()
    query.close()
    return reply.status, body


def observation(index: int = 0) -> dict:
    """What a robot sends to small_policy."""
    fields = robot_sample(index).fields
    names = ("rgb_front", "rgb_wrist", "depth_front", "proprio")
    return {name: fields[f"obs.{name}"][0] for name in names} | {"prompt": "lift the cube"}


def sample_of(request: dict) -> Sample:
    """The same as a sample of one step."""
    fields = {f"obs.{name}": value[None] for name, value in request.items() if name != "prompt"}
    return Sample(fields, {"obs": np.zeros(1, bool)}, {"obs": np.zeros(1, np.float32)}, request["prompt"], "arm")


def equal(a: Answer, b: Answer) -> bool:
    return np.array_equal(a.chunk_TA, b.chunk_TA) and (
        a.future.keys() == b.future.keys() and all(np.array_equal(a.future[c], b.future[c]) for c in a.future)
    )


@pytest.fixture(scope="module")
def local() -> LocalBrain:
    torch.set_num_threads(1)
    return LocalBrain(small_policy())


@pytest.fixture(scope="module")
def port(local: LocalBrain) -> Iterator[int]:
    """One server of small_policy for the tests that need no settings of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(config.API_KEY_VARIABLE, raising=False)
        with served(local, local.policy.spec) as number:
            yield number


@pytest.fixture
def remote(port: int) -> Iterator[RemoteBrain]:
    brain = RemoteBrain(f"ws://127.0.0.1:{port}", timeout_s=WAIT_S)
    yield brain
    brain.close()


PREFIX = np.linspace(-0.5, 0.5, CHUNK * ACTION, dtype=np.float32).reshape(CHUNK, ACTION)
REQUESTS = {
    "plain": {},
    "another plan": {"number": 7},
    "another seed": {"seed": 3},
    "prefix": {"prefix": PREFIX, "prefix_len": 2},
    "empty prefix": {"prefix": PREFIX, "prefix_len": 0},
    "steps and guidance": {"steps": 2, "guidance": 1.5},
    "temperature": {"temperature": 0.0},
    "imagined": {"imagine": True, "number": 2, "seed": 1},
}


@pytest.mark.parametrize("case", REQUESTS)
def test_remote_and_local_brains_give_the_same_answer(local: LocalBrain, remote: RemoteBrain, case: str) -> None:
    request = Request(**({"sample": sample_of(observation()), "observed_at_s": 0.0, "number": 0} | REQUESTS[case]))
    there, here = remote(request), local(request)
    assert equal(there, here)
    assert bool(there.future) == request.imagine
    assert here.timings_ms.keys() <= there.timings_ms.keys()
    there.chunk_TA[:] = 0  # a client may change what it was given
    if case != "plain":
        assert not equal(here, local(Request(request.sample, 0.0, 0)))


@pytest.mark.parametrize("absent", ["rgb_front", "rgb_wrist", "depth_front", "proprio", "prompt"])
def test_what_is_absent_here_is_absent_there(local: LocalBrain, remote: RemoteBrain, absent: str) -> None:
    sample = sample_of(observation())
    if absent == "prompt":
        sample.text = None
    else:
        del sample.fields[f"obs.{absent}"]
    assert equal(remote(Request(sample, 0.0, 0)), local(Request(sample, 0.0, 0)))


def test_the_spec_travels(local: LocalBrain, remote: RemoteBrain) -> None:
    assert remote.spec == local.policy.spec
    assert remote.metadata["action"]["shape"] == [CHUNK, ACTION]
    assert list(remote.metadata["observation"]) == ["rgb_front", "rgb_wrist", "depth_front", "proprio"]


def test_plans_are_counted_from_the_reset(port: int, local: LocalBrain) -> None:
    """What openpi's client gets that knows none of our keys, and one that says where an episode begins."""
    request = observation()
    expected = [local(Request(sample_of(request), 0.0, number)).chunk_TA for number in range(3)]
    with speaking(port) as (connection, _):
        replies = [infer(connection, request) for _ in range(3)]
        again = infer(connection, request | {"padpolicy/reset": True, "padpolicy/seq": 9, "padpolicy/time_s": 2.5})
    assert all(np.array_equal(reply["actions"], plan) for reply, plan in zip(replies, expected, strict=True))
    assert replies[0]["actions"].dtype == np.float32
    assert [reply["padpolicy/number"] for reply in replies] == [0, 1, 2]
    assert [("prev_total_ms" in reply["server_timing"]) for reply in replies] == [False, True, True]
    assert replies[0]["policy_timing"]["infer_ms"] > 0
    assert np.array_equal(again["actions"], expected[0])
    assert (again["padpolicy/seq"], again["padpolicy/time_s"]) == (9, 2.5)


def test_pictures_of_another_size_are_letterboxed(port: int, local: LocalBrain) -> None:
    size = local.policy.spec.image_size
    wide = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    far = np.random.default_rng(1).integers(300, 900, (48, 20)).astype(">u2")
    with speaking(port) as (connection, _):
        there = infer(connection, observation() | {"rgb_front": wide, "depth_front": far})["actions"]
    fitted = {"rgb_front": letterbox(wide, size), "depth_front": letterbox(far.astype(np.uint16), size)}
    assert np.array_equal(there, local(Request(sample_of(observation() | fitted), 0.0, 0)).chunk_TA)


class Seen:
    """A brain that remembers its samples."""

    def __init__(self, spec):
        self.spec, self.samples = spec, []

    def __call__(self, request: Request) -> Answer:
        self.samples.append(request.sample)
        return Answer(request, np.zeros((self.spec.chunk_steps, self.spec.action_dim), np.float32))


def frame(value: int) -> dict:
    return {
        "rgb_front": np.full((16, 16, 3), value, np.uint8),
        "depth_front": np.full((16, 16), value, np.uint16),
        "proprio": np.array([value], np.float32),
        "prompt": "go left",
    }


def test_history_is_kept_by_timestamp_and_forgotten_at_a_reset() -> None:
    spec = FakePolicy(obs_steps=3).spec
    brain = Seen(spec)
    with served(brain, spec, imagines=False) as port, speaking(port) as (connection, _):
        for value, time_s in ((1, 10.0), (2, 10.1), (3, 10.15), (4, 10.2)):
            infer(connection, frame(value) | {"padpolicy/time_s": time_s})
        infer(connection, frame(5) | {"padpolicy/time_s": 0.0, "padpolicy/reset": True})
        text = refused(connection, wire.pack(frame(6) | {"padpolicy/time_s": -1.0}))
    seen = [sample.fields["obs.proprio"][:, 0].tolist() for sample in brain.samples[1:]]
    assert seen == [[1, 1, 1], [1, 1, 2], [1, 2, 3], [1, 2, 4], [5, 5, 5]]
    assert [sample.is_pad["obs"].tolist() for sample in brain.samples[1:]][:2] == [
        [True, True, False],
        [True, False, False],
    ]
    assert "time_s=-1.0 is not after the newest observation at 0.0" in text


def test_history_may_come_with_the_request() -> None:
    spec = FakePolicy(obs_steps=2).spec
    brain = Seen(spec)
    frames = [frame(value) for value in (1, 2)]
    stacked = {name: np.stack([f[name] for f in frames]) for name in ("rgb_front", "depth_front", "proprio")}
    with served(brain, spec, imagines=False) as port, speaking(port) as (connection, _):
        infer(connection, stacked | {"prompt": None, "padpolicy/is_pad": np.array([True, False])})
        text = refused(connection, wire.pack(stacked | {"rgb_front": frames[0]["rgb_front"], "prompt": "x"}))
    sample = brain.samples[-1]
    assert all(np.array_equal(sample.fields[f"obs.{name}"], value) for name, value in stacked.items())
    assert (sample.text, sample.is_pad["obs"].tolist()) == (None, [True, False])
    assert text == "bad request: some fields have a time axis and some not: depth_front, proprio"


def without(name: str) -> dict:
    return {key: value for key, value in observation().items() if key != name}


BAD = {
    "garbage": (b"\x93garbage", "expected one msgpack message, got 8 bytes"),
    "text frame": ("hello", "a text frame; a request is one binary frame of msgpack."),
    "not a map": (wire.pack([1]), "a request is a map from names to values, got list [1]."),
    "missing picture": (wire.pack(without("rgb_wrist")), "'rgb_wrist' is missing; there are list ['depth_front',"),
    "missing prompt": (wire.pack(without("prompt")), "'prompt' is missing"),
    "prompt": (wire.pack(observation() | {"prompt": 3}), "prompt is int 3: expected at most 1000 characters, or None."),
    "dtype": (
        wire.pack(observation() | {"rgb_front": np.zeros((32, 32, 3), np.float32)}),
        "rgb_front: expected (H, W, 3) uint8, or 1 of them, oldest first; got float32 (32, 32, 3).",
    ),
    "shape": (
        wire.pack(observation() | {"proprio": np.zeros(5, np.float32)}),
        "proprio: expected (4,) float32, or 1 of them, oldest first; got float32 (5,).",
    ),
    "empty picture": (
        wire.pack(observation() | {"depth_front": np.zeros((0, 32), np.uint16)}),
        "depth_front: expected (H, W) uint16 millimetres, or 1 of them, oldest first; got uint16 (0, 32).",
    ),
    "NaN": (
        wire.pack(observation() | {"proprio": np.full(4, np.nan)}),
        "proprio has values that are NaN, infinite or beyond 1e+06.",
    ),
    "huge": (
        wire.pack(observation() | {"proprio": np.array([0, 3e24, 0, 0], np.float32)}),
        "proprio has values that are NaN, infinite or beyond 1e+06.",
    ),
    "guidance": (
        wire.pack(observation() | {"padpolicy/guidance": 1e300}),
        "padpolicy/guidance is 1e+300: expected at most 100.",
    ),
    "unknown extra": (
        wire.pack(observation() | {"padpolicy/sed": 1}),
        "unknown key str 'padpolicy/sed'; this server knows padpolicy/seq, padpolicy/time_s,",
    ),
    "seed": (wire.pack(observation() | {"padpolicy/seed": -1}), "padpolicy/seed is int -1: expected a whole number"),
    "flag": (wire.pack(observation() | {"padpolicy/reset": 1}), "padpolicy/reset is int 1: expected true or false."),
    "time": (wire.pack(observation() | {"padpolicy/time_s": float("inf")}), "time_s is inf: expected a finite number."),
    "steps": (wire.pack(observation() | {"padpolicy/steps": 101}), "padpolicy/steps is 101: at most 100 (max_steps)."),
    "prefix": (
        wire.pack(observation() | {"padpolicy/prefix": np.zeros((CHUNK + 1, ACTION), np.float32)}),
        f"padpolicy/prefix: expected (n <= {CHUNK}, {ACTION}) numbers, got float32 ({CHUNK + 1}, {ACTION}).",
    ),
    "is_pad": (
        wire.pack(observation() | {"padpolicy/is_pad": np.zeros(1, bool)}),
        "padpolicy/is_pad goes with fields that have a time axis of 1 steps.",
    ),
    "bomb": (b"\x91" * 10_000, "expected one msgpack message"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_told_what_is_wrong(port: int, case: str) -> None:
    message, words = BAD[case]
    with speaking(port) as (connection, _):
        text = refused(connection, message)
    assert text.startswith("bad request: ") and words in text
    assert "Traceback" not in text and "\n" not in text


def test_the_light_client_says_what_the_server_says_and_goes_on(local: LocalBrain, remote: RemoteBrain) -> None:
    good = Request(sample_of(observation()), 0.0, 0)
    bad = Request(sample_of(observation() | {"proprio": np.full(4, np.inf, np.float32)}), 0.0, 0)
    with pytest.raises(ValueError, match="proprio has values that are NaN, infinite"):
        remote(bad)
    assert equal(remote(good), local(good))
    with pytest.raises(ValueError, match="the sample is of robot 'leg', .* for 'arm'"):
        remote(Request(dataclasses.replace(good.sample, robot="leg"), 0.0, 0))


class Broken(Seen):
    def __call__(self, request: Request) -> Answer:
        answer = super().__call__(request)
        if request.seed == 1:
            raise ValueError("/secret/path is torn")
        if request.seed == 2:
            answer.chunk_TA[0, 0] = np.nan
        return answer


@pytest.mark.parametrize("seed", [1, 2])
def test_an_error_of_ours_is_logged_and_not_told(caplog: pytest.LogCaptureFixture, seed: int) -> None:
    spec = FakePolicy().spec
    with served(Broken(spec), spec, imagines=False) as port:
        with speaking(port) as (connection, _):
            text = refused(connection, wire.pack(frame(1) | {"padpolicy/seed": seed}))
        with speaking(port) as (connection, _):
            assert infer(connection, frame(1))["actions"].shape == (8, 1)
    assert text == "internal error: the server's log says what failed."
    assert ("/secret/path is torn", "all of it finite")[seed - 1] in caplog.text


class Slow(Seen):
    """Thinks until it is let go; the warm-up passes."""

    def __init__(self, spec):
        super().__init__(spec)
        self.thinking, self.go, self.done = threading.Event(), threading.Event(), []

    def __call__(self, request: Request) -> Answer:
        if request.seed:
            self.thinking.set()
            assert self.go.wait(WAIT_S)
        self.done.append(request.seed)
        return super().__call__(request)


def test_the_log_takes_ten_lines_a_second() -> None:
    limit = server.AtMost()
    records = [logging.makeLogRecord({"created": 5 + i / 50}) for i in range(100)]
    assert [sum(limit.filter(record) for record in records[:50]), sum(limit.filter(r) for r in records[50:])] == [
        10,
        10,
    ]


def test_healthz_and_new_clients_are_served_while_it_thinks() -> None:
    brain = Slow(FakePolicy().spec)
    with served(brain, brain.spec, imagines=False) as port, speaking(port) as (connection, _):
        connection.send(wire.pack(frame(1) | {"padpolicy/seed": 1}))
        assert brain.thinking.wait(WAIT_S)
        assert get(port, "/healthz") == (200, b"OK\n")
        with speaking(port) as (_, hello):
            assert hello["server"] == "padpolicy"
        brain.go.set()
        assert "actions" in wire.unpack(connection.recv(timeout=WAIT_S))


def test_who_leaves_takes_the_request_out_of_the_queue(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "padpolicy.serve")
    brain = Slow(FakePolicy().spec)
    with served(brain, brain.spec, imagines=False) as port, speaking(port) as (first, _), speaking(port) as (third, _):
        first.send(wire.pack(frame(1) | {"padpolicy/seed": 1}))
        assert brain.thinking.wait(WAIT_S)
        with speaking(port) as (second, _):
            second.send(wire.pack(frame(2) | {"padpolicy/seed": 2}))
            assert second.ping().wait(WAIT_S)  # what was sent before has been read
        third.send(wire.pack(frame(3) | {"padpolicy/seed": 3}))
        patience = time.monotonic() + WAIT_S
        while ": 0 answers in" not in caplog.text and time.monotonic() < patience:
            time.sleep(0.01)
        brain.go.set()
        assert all("actions" in wire.unpack(connection.recv(timeout=WAIT_S)) for connection in (first, third))
    assert brain.done == [0, 1, 3]


def test_fifty_clients_at_once_each_get_their_own_answer(port: int, local: LocalBrain) -> None:
    n = 50
    barrier = threading.Barrier(n)

    def ask(i: int) -> np.ndarray:
        brain = RemoteBrain(f"ws://127.0.0.1:{port}", timeout_s=WAIT_S)
        barrier.wait(WAIT_S)
        try:
            return brain(Request(sample_of(observation(i)), 0.0, number=i, seed=i)).chunk_TA
        finally:
            brain.close()

    with ThreadPoolExecutor(n) as pool:
        there = list(pool.map(ask, range(n)))
    for i, chunk in enumerate(there):
        assert np.array_equal(chunk, local(Request(sample_of(observation(i)), 0.0, number=i, seed=i)).chunk_TA)


def test_no_more_connections_than_allowed() -> None:
    spec = FakePolicy().spec
    with served(Seen(spec), spec, imagines=False, max_connections=2) as port:
        with speaking(port), speaking(port):
            with pytest.raises(InvalidStatus) as full, speaking(port):
                pass
            assert full.value.response.status_code == 503
            assert get(port, "/healthz") == (200, b"OK\n")
            with pytest.raises(ConnectionError, match="HTTP 503 All 2 connections are in use"):
                RemoteBrain(f"ws://127.0.0.1:{port}", timeout_s=WAIT_S)
        with speaking(port):
            pass


def test_only_who_has_the_key_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FakePolicy().spec
    with served(Seen(spec), spec, imagines=False, api_key="open-sesame") as port:
        url = f"ws://127.0.0.1:{port}"
        for headers in (
            {},
            *({"Authorization": v} for v in ("Api-Key open-sesam", "Api-Key", "Bearer open-sesame", "é")),
        ):
            with pytest.raises(InvalidStatus) as wrong, speaking(port, additional_headers=headers):
                pass
            assert wrong.value.response.status_code == 401
        with pytest.raises(PermissionError, match="does not take this key"):
            RemoteBrain(url, api_key="wrong", timeout_s=WAIT_S)
        RemoteBrain(url, api_key="open-sesame", timeout_s=WAIT_S).close()
        assert get(port, "/healthz")[0] == 200
    monkeypatch.setenv(config.API_KEY_VARIABLE, "from-the-environment")
    with served(Seen(spec), spec, imagines=False) as port:
        RemoteBrain(f"ws://127.0.0.1:{port}", timeout_s=WAIT_S).close()  # takes its own from there, too
        with pytest.raises(PermissionError):
            RemoteBrain(f"ws://127.0.0.1:{port}", api_key="open-sesame", timeout_s=WAIT_S)


def test_no_web_page_comes_in(port: int) -> None:
    with pytest.raises(InvalidStatus) as wrong, speaking(port, origin="https://page.example"):
        pass
    assert wrong.value.response.status_code == 403


def test_too_large_a_message_ends_its_connection_alone() -> None:
    spec = FakePolicy().spec
    with served(Seen(spec), spec, imagines=False, max_message_mb=1) as port, speaking(port) as (other, hello):
        assert hello["max_message_bytes"] == 2**20
        for message in (bytes(2**20 + 1), [bytes(2**19)] * 3):
            with speaking(port) as (connection, _), pytest.raises(ConnectionClosed) as closed:
                connection.send(iter(message) if isinstance(message, list) else message)
                connection.recv(timeout=WAIT_S)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
        assert "actions" in infer(other, frame(1))


def test_silent_connections_are_closed() -> None:
    """Half open: nothing, or half a handshake. Idle: no request. Mute: no answer to a ping."""
    spec = FakePolicy().spec
    with served(Seen(spec), spec, imagines=False, handshake_s=0.2, idle_s=0.3, ping_s=0.2) as port:
        for data in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n"):
            with socket.create_connection(("127.0.0.1", port), WAIT_S) as half:
                half.sendall(data)
                while half.recv(1000):  # whatever it says, it ends
                    pass
        with speaking(port) as (connection, _), pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=WAIT_S)
        assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (
            1000,
            "idle for 0.3 s",
        )
    with served(Seen(spec), spec, imagines=False, ping_s=0.2) as port:
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as mute:
            mute.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            while mute.recv(1000):
                pass


def test_garbage_instead_of_a_handshake(port: int) -> None:
    for data in (os.urandom(500), b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000, b"POST / HTTP/1.1\r\n\r\n", b"\n" * 50):
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as bare, contextlib.suppress(ConnectionError):
            bare.sendall(data + b"\r\n\r\n")
            bare.recv(1000)
    assert get(port, "/healthz") == (200, b"OK\n")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        + ["-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    spec = FakePolicy().spec
    with served(Seen(spec), spec, imagines=False, certfile=cert, keyfile=key) as port:
        brain = RemoteBrain(f"wss://127.0.0.1:{port}", ca_file=cert, timeout_s=WAIT_S)
        assert brain.spec == spec
        brain.close()
        with pytest.raises(ConnectionError, match="certificate"):
            RemoteBrain(f"wss://127.0.0.1:{port}", timeout_s=WAIT_S)
        with pytest.raises(ConnectionError, match="no policy answers at ws://"):
            RemoteBrain(f"ws://127.0.0.1:{port}", timeout_s=0.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "host=0.0.0.0 can be reached from other machines, and there is no key"),
        ({"host": "robot.example"}, "or say insecure=true"),
        ({"certfile": "c.pem"}, "certfile and keyfile belong together"),
        ({"port": 70000}, "port=70000: at most 65535"),
        ({"api_key": "two words"}, "api_key: printable ASCII"),
        ({"idle_s": 0.0}, "idle_s=0.0: seconds, more than 0"),
        ({"max_connections": 0}, "max_connections=0: at least 1"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict, words: str) -> None:
    with pytest.raises(config.ConfigError, match=words):
        config.check(config.ServeConfig(checkpoint="x", **settings))


@pytest.mark.parametrize(
    "settings", [{"host": "::1"}, {"host": "0.0.0.0", "api_key": "k"}, {"host": "::", "insecure": True}]
)
def test_settings_that_can(settings: dict) -> None:
    config.check(config.ServeConfig(checkpoint="x", **settings))


def test_a_port_or_a_certificate_that_cannot_be_used(port: int, tmp_path: Path) -> None:
    spec = FakePolicy().spec
    for settings, words in (
        ({"port": port}, f"port={port} cannot be opened"),
        (
            {"port": 0, "certfile": str(tmp_path / "no.pem"), "keyfile": "no.key"},
            "no.pem, keyfile=no.key: No such file",
        ),
    ):
        unopened = Server(config.ServeConfig(checkpoint="x", **settings), Seen(spec), spec, False)
        with pytest.raises(config.ConfigError, match=words):
            asyncio.run(unopened.run(asyncio.Event()))


def test_the_client_finds_a_server_that_comes_back_and_says_when_there_is_none() -> None:
    spec = FakePolicy().spec
    with served(Seen(spec), spec, imagines=False) as port:
        brain = RemoteBrain(f"ws://127.0.0.1:{port}", timeout_s=WAIT_S)
    request = Request(Sample(text="go"), 0.0, 0)
    brain.timeout_s = 0.3
    with pytest.raises(
        ConnectionError, match=rf"no policy answers at ws://127.0.0.1:{port} .*`padpolicy serve checkpoint="
    ):
        brain(request)
    brain.timeout_s = WAIT_S
    for changes, error in (({}, None), ({}, None), ({"dt_s": 0.2}, "serves another policy than before")):
        other = FakePolicy(**changes).spec
        with served(Seen(other), other, imagines=False, port=port):
            if error:
                with pytest.raises(ConnectionError, match=error):
                    brain(request)
            else:
                assert brain(request).chunk_TA.shape == (8, 1)
    brain.close()


def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    brain = Slow(FakePolicy().spec)
    with served(brain, brain.spec, imagines=False) as port:
        remote = RemoteBrain(f"ws://127.0.0.1:{port}", timeout_s=WAIT_S)
        remote.timeout_s = 0.2
        with pytest.raises(ConnectionError, match="has not answered in 0.2 s"):
            remote(Request(Sample(text="go"), 0.0, 0, seed=1))
        brain.go.set()
        remote.timeout_s = WAIT_S
        assert remote(Request(Sample(text="go"), 0.0, 5)).request.number == 5
        remote.close()


def test_beside_a_loop(remote: RemoteBrain, local: LocalBrain) -> None:
    planner, request, answer = Beside(remote), Request(sample_of(observation()), 0.0, 4), None
    planner.ask(request)
    while answer is None:
        answer = planner.poll()
    assert equal(answer, local(request))


def test_the_command_serves_and_ends_cleanly(tmp_path: Path) -> None:
    """`padpolicy serve` as a process of its own, with a policy from disk; SIGTERM tells its clients that it goes."""
    save_policy(small_policy(), tmp_path / "policy")
    code = (
        "import sys; from small import HashEncoder, MeanEncoder; from padpolicy import cli, saving; "
        "saving.ImageEncoder.load = lambda name, device: MeanEncoder(); "
        "saving.TextEncoder.load = lambda name, device: HashEncoder(); sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "serve", f"checkpoint={tmp_path / 'policy'}", "port=0", "threads=1"]
    tests = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": tests},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[3].rstrip(".")
        brain = RemoteBrain(url, timeout_s=WAIT_S)
        request = Request(sample_of(observation()), 0.0, 1, seed=2, imagine=True)
        assert equal(brain(request), LocalBrain(small_policy())(request))
        assert brain._connection is not None
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            brain._connection.recv(timeout=WAIT_S)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        out, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (0, "Stopped.\n")
    assert "1 answers in" in err and "Traceback" not in err
