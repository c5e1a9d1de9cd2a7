"""The live page: a real server, asked over real connections."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from padpolicy.config import ConfigError
from padpolicy.control.planner import Answer, Request
from padpolicy.control.robot import Intervention, Observation, Plan, Status
from padpolicy.deploy.page import HISTORY_S, SCORES, LivePage
from padpolicy.sample import Sample

STOP_URL = "http://127.0.0.1:9"


@contextlib.contextmanager
def serving(cameras=("front", "wrist"), names=("x", "gripper"), offsets_s=(0.6,), stop_url=STOP_URL):
    page = LivePage(0, stop_url, cameras, names, offsets_s)
    try:
        yield page
    finally:
        page.close()


def get(page, path):
    """Status code, content type, body."""
    try:
        with urllib.request.urlopen(page.url + path, timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def state_of(page):
    code, kind, body = get(page, "/state")
    assert (code, kind) == (200, "application/json")
    state = json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert state.pop("run") in get(page, "/")[2].decode()
    return state


def picture_at(page, path):
    code, kind, body = get(page, path)
    assert (code, kind) == (200, "image/jpeg")
    return np.asarray(Image.open(io.BytesIO(body)))


def grey(level, height=24, width=32):
    return np.full((height, width, 3), level, np.uint8)


def status(time_s, state="moving", commanded=(0.25, 1.0), measured=(0.5, 0.0), **more):
    more = {"reason": "", "plan": 7} | more
    return Status(time_s, state, commanded=np.array(commanded), measured=np.array(measured), **more)


def answer(**future):
    request = Request(Sample(text="", robot=""), observed_at_s=0.0, number=0)
    return Answer(request, np.zeros((2, 2), np.float32), future)


NOTHING = {
    "episode": 0,
    "instruction": "",
    "ended": False,
    "quiet_s": None,
    "seen": 0,
    "imagined": 0,
    "futures": [0, 0],
    "status": None,
    "history": {"times_s": [], "commanded": [], "measured": []},
    "plan": None,
    "reaction_ms": None,
    "score": None,
}


def test_answers_before_anything_was_pushed():
    with serving() as page:
        code, kind, body = get(page, "/")
        assert (code, kind) == (200, "text/html; charset=utf-8")
        assert STOP_URL in body.decode() and 'id="stop"' in body.decode()
        assert state_of(page) == NOTHING
        assert get(page, "/seen/0")[0] == get(page, "/imagined/0/0")[0] == 404


def test_shows_what_was_pushed():
    with serving() as page:
        page.episode(3, "open the drawer")
        page.seen(Observation(10.0, {"rgb_front": grey(60), "rgb_wrist": grey(90)}, np.zeros(2)))
        plan = Plan(8, 10.0, np.array([10.1, 10.2]), np.array([[0.3, 1.0], [0.4, 0.0]]))
        page.planned(plan, answer(front=np.stack([grey(120), grey(150)])), 0.25)
        page.planned(plan, answer(), 0.15)
        page.status(status(10.0))
        last = Intervention(10.05, "workspace", "x 0.7, at most 0.67")
        page.status(
            status(10.1, "holding", measured=(0.6, 0.0), reason="silence", interventions={"silence": 2}, last=last)
        )
        page.score(0.5, 2.0, False)
        page.score(2.5, 2.0, True)
        state = state_of(page)
        assert state.pop("quiet_s") >= 0
        assert state == {
            "episode": 3,
            "instruction": "open the drawer",
            "ended": False,
            "seen": 1,
            "imagined": 1,
            "futures": [2, 0],
            "status": {
                "time_s": 10.1,
                "state": "holding",
                "reason": "silence",
                "plan": 7,
                "interventions": {"silence": 2},
                "last": {"time_s": 10.05, "kind": "workspace", "detail": "x 0.7, at most 0.67"},
            },
            "history": {
                "times_s": [10.0, 10.1],
                "commanded": [[0.25, 1.0], [0.25, 1.0]],
                "measured": [[0.5, 0.0], [0.6, 0.0]],
            },
            "plan": {"number": 8, "times_s": [10.1, 10.2], "waypoints": [[0.3, 1.0], [0.4, 0.0]]},
            "reaction_ms": {"last": 150.0, "p50": 200.0, "p95": 245.0},
            "score": {"values": [0.5, 2.5], "threshold": 2.0, "alarm": True},
        }
        np.testing.assert_array_equal(picture_at(page, "/seen/0?1"), grey(60))
        np.testing.assert_array_equal(picture_at(page, "/seen/1"), grey(90))
        np.testing.assert_array_equal(picture_at(page, "/imagined/0/0"), grey(120))
        np.testing.assert_array_equal(picture_at(page, "/imagined/0/1?1"), grey(150))


def test_a_new_episode_begins_anew_and_keeps_reaction_times():
    with serving() as page:
        page.episode(0, "first")
        page.status(status(5.0))
        page.score(1.0, 2.0, False)
        page.planned(Plan(0, 5.0, np.array([5.1]), np.zeros((1, 2))), answer(), 0.5)
        page.episode(1, "second")
        state = state_of(page)
        del state["quiet_s"]
        expected = NOTHING | {"episode": 1, "instruction": "second"}
        del expected["quiet_s"]
        assert state == expected | {"reaction_ms": {"last": 500.0, "p50": 500.0, "p95": 500.0}}


def test_unknown_paths():
    paths = ["/stat", "/state/0", "/seen", "/seen/2", "/seen/1", "/seen/x", "/seen/0/0", "/imagined/0", "/imagined/0/1"]
    paths += ["/imagined/1/0", "/../page.py", "//etc/passwd", "/seen/0/0/0"]
    with serving() as page:
        page.seen(Observation(0.0, {"rgb_front": grey(0)}, np.zeros(2)))  # and nothing of the wrist
        page.planned(Plan(0, 0.0, np.array([0.1]), np.zeros((1, 2))), answer(front=grey(0)[None]), 0.1)
        for path in paths:
            assert get(page, path) == (404, "text/plain", b"nothing here\n"), path


def test_text_stays_text():
    """Instructions travel as JSON, which browsers do not take for a page; names of cameras are escaped."""
    html = "</script><img src=x onerror=alert(1)>"
    with serving(cameras=[html], names=[html]) as page:
        page.episode(0, html)
        assert state_of(page)["instruction"] == html
        assert b"<img" not in get(page, "/")[2]
        with urllib.request.urlopen(page.url + "/state", timeout=30) as got:
            assert got.headers["X-Content-Type-Options"] == "nosniff"


def test_what_is_not_finite_is_left_out():
    with serving() as page:
        page.status(status(1.0, commanded=(np.nan, 1.0), measured=(-np.inf, 0.0)))
        page.planned(Plan(0, 1.0, np.array([1.1, np.nan]), np.full((2, 2), np.inf)), answer(), 0.1)
        page.score(np.nan, np.inf, False)
        state = state_of(page)
        assert state["history"] == {"times_s": [1.0], "commanded": [[None, 1.0]], "measured": [[None, 0.0]]}
        assert state["plan"] == {"number": 0, "times_s": [1.1, None], "waypoints": [[None, None], [None, None]]}
        assert state["score"] == {"values": [None], "threshold": None, "alarm": False}


def test_history_is_bounded():
    with serving() as page:
        for i in range(4000):  # 8 s at 500 Hz
            page.status(status(i / 500))
            page.score(i, 1.0, True)
        state = state_of(page)
        times = state["history"]["times_s"]
        assert times[-1] - times[0] == pytest.approx(HISTORY_S, abs=0.021)
        assert np.diff(times) == pytest.approx(0.02)
        assert state["score"]["values"] == list(range(4000 - SCORES, 4000))


def test_a_status_that_comes_again_is_one_point():
    with serving() as page:
        for _ in range(3):
            page.status(status(1.0))
        assert state_of(page)["history"]["times_s"] == [1.0]


def test_readers_that_never_read_hold_nobody_up():
    with serving() as page:
        noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)  # more than sockets buffer
        page.seen(Observation(0.0, {"rgb_front": noise}, np.zeros(2)))
        address = ("127.0.0.1", int(page.url.rpartition(":")[2]))
        with contextlib.ExitStack() as stack:
            for request in [b"GET /seen/0 HTTP/1.1\r\n\r\n"] * 4 + [b"GET /state", b""]:  # silent after half of it, too
                stack.enter_context(socket.create_connection(address)).sendall(request)
            for i in range(1, 101):
                page.seen(Observation(float(i), {"rgb_front": grey(i)}, np.zeros(2)))
                page.status(status(float(i)))
            state = state_of(page)
            assert (state["seen"], state["status"]["time_s"]) == (101, 100.0)
            np.testing.assert_array_equal(picture_at(page, "/seen/0"), grey(100))


def test_browsers_that_go_away_are_no_news(capfd):
    with serving() as page:
        page.seen(Observation(0.0, {"rgb_front": grey(9, 800, 800)}, np.zeros(2)))
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", int(page.url.rpartition(":")[2]))) as browser:
                browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not closed
                browser.sendall(b"GET /seen/0 HTTP/1.1\r\n\r\n")
        assert state_of(page)["seen"] == 1
    assert capfd.readouterr().err == ""


def test_pages_that_are_open_hear_of_the_end(monkeypatch):
    page, heard = LivePage(0, STOP_URL, [], ["x"]), []
    heard.append(state_of(page)["ended"])
    monkeypatch.setattr("padpolicy.deploy.page.time.sleep", lambda seconds: heard.append(state_of(page)["ended"]))
    page.close()
    assert heard == [False, True]
    with pytest.raises(urllib.error.URLError):
        get(page, "/state")


def test_another_run_is_told_apart():
    with serving() as one, serving() as two:
        runs = [json.loads(get(page, "/state")[2])["run"] for page in (one, two)]
        assert runs[0] != runs[1]


def test_a_taken_port_says_so():
    with serving() as page:
        port = int(page.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"page_port={port}: .*in use.*page_port=0"):
            LivePage(port, STOP_URL, [], ["x"])
