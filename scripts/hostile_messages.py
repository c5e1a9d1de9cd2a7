"""Sends a policy server thousands of broken, hostile and a few sound messages, and shows that it does not mind.

    python scripts/hostile_messages.py [--checkpoint tabletop] [--messages 10000] [--seed 0] [--growth-mb 200]

Starts `padpolicy serve` as a process of its own. Message i is a function of (seed, i). Afterwards the server must be
alive, answer /healthz, give a fixed request the answer of before to the last bit, never have called a message an
internal error, and hold little more memory than before. The exit code is 0 if all of that is so.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from padpolicy.control import wire

ANSWER_S = 60.0  # for one answer: longer means that the server hangs
Rng = np.random.Generator
Message = bytes | str | list[bytes]  # a binary frame, a text frame, a message in fragments


def sound(rng: Rng, hello: dict[str, Any], side: int = 16) -> dict[str, Any]:
    """A request that the server can answer, with small pictures: so that changed bytes often hit its structure."""
    spec, request = hello["spec"], {"prompt": "lift the red cube", "padpolicy/seed": 1, "padpolicy/number": 0}
    for name in hello["observation"]:
        if name.startswith("rgb_"):
            request[name] = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
        elif name.startswith("depth_"):
            request[name] = rng.integers(300, 900, (side, side)).astype(np.uint16)
        else:
            request[name] = rng.standard_normal(spec["proprio_dim"]).astype(np.float32)
    return request


def pick(rng: Rng, choices: list[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def mutated(rng: Rng, hello: dict[str, Any]) -> bytes:
    data = bytearray(wire.pack(sound(rng, hello, side=2)))
    for place in rng.integers(0, len(data), int(rng.integers(1, 8))):
        data[place] = int(rng.integers(256))
    return bytes(data)


def truncated(rng: Rng, hello: dict[str, Any]) -> bytes:
    data = wire.pack(sound(rng, hello))
    return data[: int(rng.integers(len(data)))]


def missing(rng: Rng, hello: dict[str, Any]) -> bytes:
    request = sound(rng, hello)
    del request[pick(rng, [*hello["observation"], "prompt"])]
    return wire.pack(request)


def wrong_field(rng: Rng, hello: dict[str, Any]) -> bytes:
    """A field of another type, shape or content."""
    request, name = sound(rng, hello), pick(rng, list(hello["observation"]))
    there = request[name]
    request[name] = pick(
        rng,
        [
            there.astype(np.float64) * np.nan,
            there.astype(np.int64) - 2**40,
            there[None][None],
            there[..., :0],
            there.astype(str),
            there.tobytes(),
            there.tolist(),
            "a picture",
            True,
            np.float32(np.inf),
            {"nested": there},
            np.zeros((1, 1, 1, 1, 1, 1), there.dtype),
        ],
    )
    return wire.pack(request)


def wrong_extra(rng: Rng, hello: dict[str, Any]) -> bytes:
    key = pick(rng, [*hello["extras"], "padpolicy/pickle", "padpolicy/", "padpolicy/__class__"])
    wrong = [None, "x", b"x", -1, 2**64 - 1, 1e300, float("nan"), [], {}, [[[]]], np.full((99, 99), np.nan), np.ones(3)]
    return wire.pack({**sound(rng, hello), key: pick(rng, wrong)})


def odd_prompt(rng: Rng, hello: dict[str, Any]) -> bytes:
    words = ["", "\0" * 20, "a" * 1001, "\U0001f9ca" * 500, "<|endoftext|>" * 50, 7, b"lift", ["lift"], "x" * 10**6]
    return wire.pack({**sound(rng, hello), "prompt": pick(rng, words)})


def forged(rng: Rng, hello: dict[str, Any]) -> bytes:
    """An array whose description lies."""
    array = {b"__ndarray__": True, b"data": b"\0" * 12, b"dtype": "<f4", b"shape": [3]}
    array |= pick(
        rng,
        [
            {b"shape": [2**62, 2**62]},
            {b"shape": [-3]},
            {b"shape": [3] * 99},
            {b"shape": [True, 3]},
            {b"shape": "3"},
            {b"shape": [0, 2**40], b"data": b""},
            {b"dtype": "|O"},
            {b"dtype": "|V12"},
            {b"dtype": "<c8"},
            {b"dtype": "f4,f4"},
            {b"dtype": "<U0"},
            {b"dtype": "<f7"},
            {b"dtype": "__import__('os')"},
            {b"dtype": ["<f4"]},
            {b"data": None},
            {b"data": "twelve bytes"},
        ],
    )
    scalar = {
        b"__npgeneric__": True,
        b"dtype": pick(rng, ["|i1", "<U4", "|O", "<f4"]),
        b"data": pick(rng, [10**9, [], {}]),
    }
    name = pick(rng, list(hello["observation"]))
    return msgpack.packb({"prompt": "lift", name: pick(rng, [array, array, scalar])})


def bomb(rng: Rng, hello: dict[str, Any]) -> bytes:
    """Few bytes that ask for much memory or depth."""
    inside = b"\x80" * 1000
    return pick(
        rng,
        [
            b"\x91" * int(rng.integers(10, 200_000)),
            b"\x81\xa1a" * int(rng.integers(10, 60_000)),
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            (b"\xdd\x00\xf0\x00\x00" * 400),
            b"\xdc\x03\xe8" + (b"\xdc\x03\xe8" + inside) * 1000,
            b"\x81" + b"\x91" * 400 + b"\xc0" * 2,
            b"\x81\x90\x01",
            b"\xd6\xff\x00\x00\x00\x01",
            b"\xc7\x05\x01hello",
        ],
    )


def no_request(rng: Rng, hello: dict[str, Any]) -> bytes:
    return wire.pack(pick(rng, [None, 1, "hi", [], {}, [1, 2], {b"prompt": "x"}, np.zeros(5), [sound(rng, hello)]]))


def stranger_sizes(rng: Rng, hello: dict[str, Any]) -> bytes:
    """Sound, with pictures of odd sizes."""
    request = sound(rng, hello)
    for name in hello["observation"]:
        if name.startswith("rgb_"):
            request[name] = rng.integers(0, 256, (*rng.integers(1, 300, 2), 3)).astype(np.uint8)
    return wire.pack(request)


def fragments(rng: Rng, hello: dict[str, Any]) -> list[bytes]:
    data = wire.pack(sound(rng, hello))
    parts = int(pick(rng, [2, 10, 1500, 200_000]))
    return [data[i : i + 1] for i in range(min(parts, len(data)))] + [b""] * max(parts - len(data), 0)


MESSAGES: dict[str, tuple[int, Callable[[Rng, dict[str, Any]], Message]]] = {  # kind -> share, how it is made
    "random bytes": (14, lambda rng, hello: rng.bytes(int(rng.integers(1, 4096)))),
    "truncated": (12, truncated),
    "mutated": (16, mutated),
    "missing key": (5, missing),
    "wrong field": (12, wrong_field),
    "wrong extra": (10, wrong_extra),
    "odd prompt": (4, odd_prompt),
    "forged array": (8, forged),
    "bomb": (7, bomb),
    "no request": (3, no_request),
    "odd sizes": (2, stranger_sizes),
    "text frame": (1, lambda rng, hello: "hello " * int(rng.integers(1, 50))),
    "fragments": (1, fragments),
    "oversized": (1, lambda rng, hello: bytes(hello["max_message_bytes"] + int(rng.integers(1, 10**6)))),
    "vanished": (2, lambda rng, hello: wire.pack(sound(rng, hello))),  # leaves before the answer
    "cut off": (1, truncated),  # leaves in the middle of a frame
    "no websocket": (1, lambda rng, hello: rng.bytes(int(rng.integers(1, 2000)))),  # not even a handshake
}


class Server:
    """`padpolicy serve` as a process."""

    def __init__(self, checkpoint: str):
        command = [sys.executable, "-m", "padpolicy.cli", "serve", f"checkpoint={checkpoint}", "port=0", "threads=1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None  # it is a pipe
        line = self.process.stdout.readline()
        found = re.search(r"ws://127\.0\.0\.1:(\d+)", line)
        if not found:
            raise SystemExit(f"padpolicy serve did not start: {line!r}")
        self.port = int(found.group(1))

    def open(self) -> tuple[ClientConnection, dict[str, Any]]:
        url, none = f"ws://127.0.0.1:{self.port}", {"compression": None, "max_size": None, "proxy": None}
        connection = connect(url, **none, close_timeout=1, ping_interval=None).__enter__()  # attack() closes it
        return connection, wire.unpack(connection.recv(timeout=ANSWER_S))

    def healthy(self) -> bool:
        query = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        query.request("GET", "/healthz")
        return query.getresponse().read() == b"OK\n"

    def memory_mb(self) -> float:
        """Resident memory; nan where the system does not say."""
        status = Path(f"/proc/{self.process.pid}/status")
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text() if status.exists() else "")
        return int(found.group(1)) / 1024 if found else float("nan")


def leave(server: Server, kind: str, data: bytes) -> str:
    """Speaks with the server through a bare socket, and is gone."""
    with socket.create_connection(("127.0.0.1", server.port), ANSWER_S) as bare:
        if kind == "no websocket":
            bare.sendall(data)
            return "left"
        bare.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        bare.recv(100)
        announced = len(data) + (100 if kind == "cut off" else 0)
        bare.sendall(b"\x82\xff" + announced.to_bytes(8, "big") + b"\0\0\0\0" + data)  # under a mask of zeros
    return "left"


def outcome(connection: ClientConnection, message: Message) -> tuple[str, bool]:
    """What came of a message, and whether the connection is still good."""
    try:
        try:
            connection.send(iter(message) if isinstance(message, list) else message)
            reply = connection.recv(timeout=ANSWER_S)
            if not isinstance(reply, str):
                return ("answered" if "actions" in wire.unpack(reply) else "NO ANSWER"), True
            said = "refused" if reply.startswith("bad request: ") else "INTERNAL ERROR"
            connection.recv(timeout=ANSWER_S)
            return "STILL OPEN", False
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else "without a word"
            return (f"{said}, closed {code}" if "said" in locals() else f"closed {code}"), False
    except TimeoutError:
        return "NO ANSWER", False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tabletop")
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth-mb", type=float, default=200, help="of the server's memory, at most")
    options = parser.parse_args()
    server = Server(options.checkpoint)
    try:
        return attack(server, options)
    finally:
        server.process.terminate()
        server.process.wait(60)


def attack(server: Server, options: argparse.Namespace) -> int:
    connection, hello = server.open()

    def fixed() -> bytes:
        with server.open()[0] as fresh:
            fresh.send(wire.pack(sound(np.random.default_rng(options.seed), hello, side=96)))
            return wire.unpack(fresh.recv(timeout=ANSWER_S))["actions"].tobytes()

    before, memory_mb, started = fixed(), server.memory_mb(), time.monotonic()
    counts: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in MESSAGES}
    shares = np.array([share for share, _ in MESSAGES.values()], float)
    for i in range(options.messages):
        rng = np.random.default_rng([options.seed, i])
        kind = str(rng.choice(list(MESSAGES), p=shares / shares.sum()))
        message = MESSAGES[kind][1](rng, hello)
        if kind in ("vanished", "cut off", "no websocket"):
            counts[kind][leave(server, kind, bytes(message))] += 1
        else:
            what, good = outcome(connection, message)
            counts[kind][what] += 1
            if what.split(",")[0].isupper():
                print(f"message {i} ({kind}): {what}", flush=True)
            if not good:
                connection.close()
                connection, _ = server.open()
        if server.process.poll() is not None:
            print(f"the server ended at message {i} ({kind}) with exit code {server.process.returncode}")
            return 1
    connection.close()

    for kind, found in counts.items():
        print(f"{kind:14} {sum(found.values()):6}  " + ", ".join(f"{what} {n}" for what, n in found.most_common()))
    wrong = sum(n for found in counts.values() for what, n in found.items() if what.split(",")[0].isupper())
    grown_mb, healthy, same = server.memory_mb() - memory_mb, server.healthy(), fixed() == before
    print(f"{options.messages} messages in {time.monotonic() - started:.0f} s; outcomes that must not be: {wrong}")
    print(f"memory: {memory_mb:.0f} MB before, {memory_mb + grown_mb:.0f} MB after")
    print(f"alive: {healthy}; the fixed request has the same answer, bit by bit: {same}")
    return 0 if healthy and same and not wrong and not grown_mb > options.growth_mb else 1


if __name__ == "__main__":
    sys.exit(main())
