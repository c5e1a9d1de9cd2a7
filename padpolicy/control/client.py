"""A policy on another computer, as a `Brain` for the robot's computer. Needs numpy, msgpack and websockets only."""

from __future__ import annotations

import os
import ssl
import time
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from padpolicy.config import API_KEY_VARIABLE
from padpolicy.control import wire
from padpolicy.control.planner import Answer, Request
from padpolicy.spec import PolicySpec

RETRY_S = 0.1  # between attempts to reach a server that is not there
MAX_RESPONSE = 2**26  # bytes


class RemoteBrain:
    """What `padpolicy serve` serves.

    A connection that was lost is opened again by the next request. Every request has all that its answer depends on,
    so that no answer changes when a server is restarted.

    Args:    url: "ws://host:port", or "wss://host:port" where the server has a certificate.
             api_key: the server's; "": that of the environment variable PADPOLICY_API_KEY, if it is set.
             ca_file: certificates (PEM) to trust besides the system's: the server's own, if it signed itself.
             timeout_s: how long to wait for a connection, and for an answer, at most.
    Raises:  ConnectionError if there is no such server, PermissionError if it does not take the key.
    """

    def __init__(self, url: str, api_key: str = "", ca_file: str = "", timeout_s: float = 10.0):
        self.url, self.timeout_s = url, timeout_s
        api_key = api_key or os.environ.get(API_KEY_VARIABLE, "")
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._tls = None
        if url.startswith("wss:"):
            self._tls = ssl.create_default_context()
            if ca_file:
                self._tls.load_verify_locations(ca_file)
        self._connection: ClientConnection | None = None
        self._asked = 0
        self.metadata: dict[str, Any] = {}
        self._connect(time.monotonic() + timeout_s)
        self.spec = PolicySpec(**self.metadata["spec"])
        self.imagines = "padpolicy/imagine" in self.metadata["extras"]

    def __call__(self, request: Request) -> Answer:
        """Answers as a LocalBrain around the served policy would.

        Raises:  ConnectionError if the server has gone or does not answer in time; PermissionError if it does not take
                 the key; ValueError if the request is not one for its policy; RuntimeError with what the server says
                 when it cannot answer.
        """
        deadline, started = time.monotonic() + self.timeout_s, time.perf_counter()
        self._asked += 1
        message = wire.pack(self._message(request))
        reply = self._exchange(message, deadline)
        if reply.get("padpolicy/seq") != self._asked:
            self.close()
            raise ConnectionError(f"{self.url} answered another request than the one it was asked: is it padpolicy's?")
        timings_ms = {
            **reply["padpolicy/timings_ms"],
            "server": reply["server_timing"]["infer_ms"],
            "round_trip": 1e3 * (time.perf_counter() - started),
        }
        future = {camera: frames.copy() for camera, frames in reply.get("padpolicy/future", {}).items()}
        return Answer(request, reply["actions"].copy(), future, timings_ms)

    def close(self) -> None:
        """Ends the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _message(self, request: Request) -> dict[str, Any]:
        sample, spec = request.sample, self.spec
        if sample.robot not in ("", spec.robot):
            raise ValueError(f"the sample is of robot {sample.robot!r}, {self.url} serves a policy for {spec.robot!r}.")
        message: dict[str, Any] = {name: sample.fields.get(f"obs.{name}") for name in self.metadata["observation"]}
        message |= {
            "prompt": sample.text,
            "padpolicy/seq": self._asked,
            "padpolicy/number": request.number,
            "padpolicy/seed": request.seed,
            "padpolicy/steps": request.steps,
            "padpolicy/guidance": request.guidance,
            "padpolicy/temperature": request.temperature,
        }
        if "obs" in sample.is_pad:
            message["padpolicy/is_pad"] = sample.is_pad["obs"]
        if request.prefix is not None:
            message["padpolicy/prefix"] = np.asarray(request.prefix, np.float32)[: request.prefix_len]
        if request.imagine:
            message["padpolicy/imagine"] = True
        return message

    def _exchange(self, message: bytes, deadline: float) -> dict[str, Any]:
        """One request and its response; a connection that was lost in the meantime is opened again, once."""
        for fresh in (self._connection is None, True):
            if self._connection is None:
                self._connect(deadline)
            assert self._connection is not None  # _connect raises where it cannot
            try:
                self._connection.send(message)
                reply = self._connection.recv(timeout=max(deadline - time.monotonic(), 0))
                if isinstance(reply, str):
                    self.close()
                    kind = ValueError if reply.startswith("bad request: ") else RuntimeError
                    raise kind(f"{self.url}: {reply}")
                return wire.unpack(reply)
            except TimeoutError:
                self.close()  # or its answer would come to the next request
                raise ConnectionError(
                    f"{self.url} has not answered in {self.timeout_s:g} s. Look at its log, or allow more by timeout_s."
                ) from None
            except ConnectionClosed as closed:
                self._connection = None
                if fresh:
                    raise ConnectionError(f"{self.url} ended the connection ({closed}). Look at its log.") from None
        raise AssertionError("unreachable: the second attempt is a fresh one")

    def _connect(self, deadline: float) -> None:
        while True:
            try:
                self._connection = connect(  # entered, as what it returns by itself differs between versions
                    self.url,
                    ssl=self._tls,
                    additional_headers=self._headers,
                    compression=None,
                    proxy=None,
                    open_timeout=max(deadline - time.monotonic(), RETRY_S),
                    close_timeout=1,
                    max_size=MAX_RESPONSE,
                ).__enter__()
                hello = self._connection.recv(timeout=max(deadline - time.monotonic(), RETRY_S))
                break
            except InvalidStatus as error:
                status = error.response.status_code
                said = (error.response.body or b"").decode(errors="replace").strip()
                if status == 401:
                    raise PermissionError(
                        f"{self.url} does not take this key. Give api_key=…, or set {API_KEY_VARIABLE}, as the server "
                        "has it."
                    ) from None
                raise ConnectionError(f"{self.url} refuses the connection: HTTP {status} {said}") from None
            except (InvalidURI, ssl.SSLCertVerificationError) as error:
                raise ConnectionError(
                    f"{self.url}: {error}. Expected ws://host:port, or wss:// and ca_file=…"
                ) from None
            except (OSError, InvalidHandshake, InvalidMessage, ConnectionClosed) as error:
                if time.monotonic() + RETRY_S > deadline:
                    raise ConnectionError(
                        f"no policy answers at {self.url} ({' '.join(str(error).split())[:120]}). Start it there with "
                        f"`padpolicy serve checkpoint=… port=…`, and see that this machine can reach it."
                    ) from None
                time.sleep(RETRY_S)
        metadata = wire.unpack(hello) if isinstance(hello, bytes) else {}
        if not isinstance(metadata, dict) or metadata.get("server") != "padpolicy":
            self.close()
            raise ConnectionError(f"{self.url} is not served by `padpolicy serve`.")
        if self.metadata and metadata["spec"] != self.metadata["spec"]:
            self.close()
            raise ConnectionError(f"{self.url} serves another policy than before. Make a new RemoteBrain for it.")
        self.metadata = metadata
