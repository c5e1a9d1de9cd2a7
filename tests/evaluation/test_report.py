"""results.json, the videos and the page, from a real evaluation of the tiny policy."""

import io
import json
import re
from html.parser import HTMLParser

import av
import fakes
import numpy as np
import pytest

from padpolicy.config import EnvConfig, EvalConfig
from padpolicy.evaluation import charts, evaluate, media
from padpolicy.evaluation.report import rate, write_report
from padpolicy.evaluation.run import run_evaluation

ENV = EnvConfig(id="fakes:Fake-v0", robot="fake", renderer="rays", cameras=["front"])
CONTRACT = "success_rate ci95 episodes seed tasks latency_ms checkpoint commit episode_list_sha256".split()


def config(out, **changes):
    values = {"checkpoint": "fake", "out": str(out), "env": ENV, "env_workers": 0, "num_envs": 3, "exec_steps": 4}
    return EvalConfig(**(values | {"episodes_per_task": 3, "videos": 2, "seed": 7} | changes))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return out, evaluate(config(out), fakes.FakePolicy())


def test_results_json_keeps_its_contract(written):
    out, returned = written
    results = json.loads((out / "results.json").read_text())
    assert set(CONTRACT) <= set(results)
    assert (results["success_rate"], results["episodes"], results["seed"]) == (1.0, 6, 7)
    assert results["ci95"] == [0.6097, 1.0]  # Wilson, 6 of 6
    assert results["tasks"]["left"] == {"success_rate": 1.0, "ci95": [0.4385, 1.0], "episodes": 3}
    assert set(results["tasks"]) == {"left", "right"}  # "stay" is held out
    assert results["outcomes"]["left"] == [1, 1, 1] and set(results["outcomes"]) == {"left", "right"}
    assert results["families"] == {"go": rate([True] * 6)}
    assert results["family_of"] == {"left": "go", "right": "go"}
    assert results["mean_by_task"] == {"success_rate": 1.0, "ci95": [0.6097, 1.0], "groups": 2}
    assert results["mean_by_family"] == {"success_rate": 1.0, "ci95": [0.6097, 1.0], "groups": 1}
    assert results["protocol"]["name"] == "fakes:Fake-v0, random goals, chunk execution"
    assert 0 < results["latency_ms"]["p50"] <= results["latency_ms"]["p95"]
    assert re.fullmatch(r"[0-9a-f]{64}", results["episode_list_sha256"])
    assert results["settings"]["exec_steps"] == 4 and results["versions"]["torch"]
    assert results["success_rate"] == returned["success_rate"] and results["commit"] and results["command"]


def test_the_same_settings_give_the_same_numbers(written, tmp_path):
    keys = ("success_rate", "ci95", "tasks", "families", "ended", "episode_list_sha256")
    again = evaluate(config(tmp_path, num_envs=1, videos=0), fakes.FakePolicy())
    assert {k: again[k] for k in keys} == {k: written[1][k] for k in keys}


def test_videos_play_in_a_browser(written):
    out, results = written
    assert [v["task"] for v in results["videos"]] == ["left", "right"]
    for video in results["videos"]:
        with av.open(str(out / video["file"])) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert stream.average_rate == 10
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(frames) == round(video["seconds"] * 10) + 1 + 10  # the reset, every step, a second of rest
        assert frames[0].shape == (32, 32 + 8 + 32, 3)  # what happens, a gap, what is imagined


class Page(HTMLParser):
    """Collects links, and checks that every element is closed."""

    VOID = {"meta", "img", "link", "br", "hr", "line"}

    def __init__(self):
        super().__init__()
        self.links, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href", "poster")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(path):
    page = Page()
    page.feed(path.read_text())
    assert not page.open
    return page


def test_the_page_is_whole_and_needs_no_network(written):
    out, _ = written
    page = parse(out / "index.html")
    for link in page.links:
        assert link.startswith("data:image/png;base64,") or (out / link).is_file(), link
    text = " ".join(" ".join(page.text).split())
    assert "Did what it was told in 6 of 6 episodes." in text
    assert "go left" in text and "imagined, +0.4" in text and "happened" in text
    assert "http" not in re.sub(r"data:[^\"]*", "", (out / "index.html").read_text())


def test_a_page_with_both_policies(tmp_path):
    shipped = run_evaluation(config(tmp_path), fakes.FakePolicy())
    trained = run_evaluation(config(tmp_path, tasks=["left"], episodes_per_task=2, videos=1), fakes.FakePolicy())
    trained.results["training"] = {"about": "Two <seconds> of training.", "steps": 40}
    trained.losses = [(step, 1 / (step + 1)) for step in range(40)]
    write_report(tmp_path, shipped, trained)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["episodes"] == 6 and results["trained"]["episodes"] == 2
    assert results["trained"]["training"]["steps"] == 40
    page = parse(tmp_path / "index.html")
    assert "Two <seconds> of training." in " ".join(page.text)  # escaped, so read back whole
    assert 'class="chart"' in (tmp_path / "index.html").read_text()
    assert len(list((tmp_path / "videos").iterdir())) == 3


def test_other_instruction_floor_and_no_film(tmp_path, monkeypatch):
    from padpolicy.evaluation.rollout import EpisodeSpec

    monkeypatch.setattr(EpisodeSpec, "options", lambda self: {"task": self.task})  # the fake knows no scene_of
    results = evaluate(config(tmp_path, other_instruction=True, videos=0), fakes.FakePolicy())
    assert results["episodes"] == 6
    assert results["other_instruction"] == {"new_goal": rate([True] * 6), "old_goal": rate([False] * 6)}
    assert "another instruction" in (tmp_path / "index.html").read_text()
    blind = evaluate(config(tmp_path, floor="no_image", videos=0), fakes.FakePolicy(noise=0.0))
    assert blind["success_rate"] == 0 and "blindfolded" in (tmp_path / "index.html").read_text()
    with pytest.raises(ValueError, match="give demonstrations=STORE"):
        evaluate(config(tmp_path, floor="replay"), fakes.FakePolicy())


def test_nothing_that_json_lacks_is_written(tmp_path):
    evaluation = run_evaluation(config(tmp_path, videos=0), fakes.FakePolicy())
    evaluation.results["odd"] = {"nan": float("nan"), "array": np.float32(1.5), "list": (float("inf"), 1)}
    write_report(tmp_path, evaluation)
    assert json.loads((tmp_path / "results.json").read_text())["odd"] == {"nan": None, "array": 1.5, "list": [None, 1]}


def test_png_is_read_back_exactly():
    image = np.random.default_rng(0).integers(0, 255, (7, 5, 3), np.uint8)
    with av.open(io.BytesIO(media.png(image)), format="png_pipe") as container:
        np.testing.assert_array_equal(next(container.decode(video=0)).to_ndarray(format="rgb24"), image)


def test_loss_curve():
    assert charts.loss_curve([1], [1.0]) == "" and charts.loss_curve([1, 2], [np.nan, -1]) == ""
    svg = charts.loss_curve(range(100), np.geomspace(1, 0.01, 100))
    assert svg.count("<path") == 2 and ">0.1<" in svg
    assert charts.loss_curve([0, 1], [0.5, 0.5]).count("<path") == 2  # a flat curve has a scale too
