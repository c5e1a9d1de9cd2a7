"""What `padpolicy info` says about a dataset and a policy, and the page about a dataset."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from small import small_policy

from padpolicy import cli, info_page
from padpolicy.config import ConfigError
from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Episode, Store, StoreSpec
from padpolicy.info import info
from padpolicy.saving import CheckpointError, save_policy


def test_a_dataset(tmp_path: Path) -> None:
    action = ActionSpec("delta", ["x", "gripper"], 0.1, gripper="binary", units=["m", "1"])
    spec = StoreSpec(
        {"front": {"size": [4, 6], "intrinsics": None, "extrinsics": None}}, action=action, robot="arm", dt_s=0.1
    )
    with Store.create(tmp_path / "d.zarr", spec) as store:
        for success in (True, False):
            arrays = {"rgb_front": np.zeros((31, 4, 6, 3), np.uint8), "action": np.zeros((31, 2), np.float32)}
            store.append(Episode(arrays, task="go", success=success))
    text = info(tmp_path / "d.zarr")
    assert "dataset, 2 episodes, 62 steps, 0.1 minutes" in text
    assert "robot     arm" in text
    assert "renderer  (real cameras)" in text
    assert "rgb_front      4 x 6 x 3 uint8, rgb" in text
    assert "action         2 float32, delta, x [m], gripper [1]" in text
    assert "go: 2 episodes, 1 successful" in text


def test_a_policy(tmp_path: Path) -> None:
    save_policy(small_policy(steps=3), tmp_path / "p")
    text = info(tmp_path / "p")
    assert "robot     arm (3 action and 4 proprioception numbers)" in text
    assert "sees      rgb front, rgb wrist, depth front at 32 px; renderer rays" in text
    assert "plans     6 actions, 0.1 s apart" in text
    assert "imagines  front at [0.3, 0.6] s" in text
    assert "network   2 blocks of width 32" in text
    assert "diffusion flow, 3 sampling steps, coupling blind" in text
    file = tmp_path / "p" / "policy.json"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"p is damaged or cut short \(policy.json: "):
        info(tmp_path / "p")


def test_it_says_so_in_text_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tmp_path), "--json"]) == 2
    assert "unknown option --json; there are --html" in capsys.readouterr().err
    assert cli.main(["info"]) == 2
    assert "usage: padpolicy info PATH [--html FILE]; got nothing" in capsys.readouterr().err


def test_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a dataset .* nor a policy .* nor a training run"):
        info(tmp_path)


# -- the page ------------------------------------------------------------------------------------------------------

LENGTHS = [12, 20, 12, 20, 16, 12, 20, 16]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight episodes of two tasks; the wrist camera and its depth are in every other one."""
    path = tmp_path_factory.mktemp("page") / "my_demos.zarr"
    camera = {"size": [6, 8], "intrinsics": None, "extrinsics": None}
    spec = StoreSpec(
        {"front": camera, "wrist": camera},
        depth_cameras=["wrist"],
        proprio={"names": ["x", "y", "z"], "unit": "m"},
        action=ActionSpec("delta", ["x", "gripper"], 0.1, gripper="binary", units=["m", "1"]),
        optional=["rgb_wrist", "depth_wrist"],
        robot="arm",
        dt_s=0.1,
    )
    with Store.create(path, spec) as store:
        for number, n in enumerate(LENGTHS):
            rng = np.random.default_rng(number)
            proprio = rng.normal(size=(n, 3)).astype(np.float32)
            proprio[:, 2] = 0.25
            arrays = {
                "rgb_front": rng.integers(0, 256, (n, 6, 8, 3), np.uint8),
                "rgb_wrist": rng.integers(0, 256, (n, 6, 8, 3), np.uint8),
                "depth_wrist": rng.integers(400, 900, (n, 6, 8), np.uint16),
                "proprio": proprio,
                "action": np.stack([rng.normal(size=n), np.arange(n) % 2], 1).astype(np.float32),
            }
            if number % 2:
                arrays = {name: rows for name, rows in arrays.items() if not name.endswith("wrist")}
            store.append(Episode(arrays, "go <b>left</b>" if number % 3 else "stay", success=number != 3))
    return path


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "line", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def elements(dataset: Path) -> Elements:
    return Elements(info_page.page(Store.open(dataset)))


def picture(uri: str) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_absent_cameras_are_told(dataset: Path, elements: Elements) -> None:
    assert "rgb_wrist      6 x 8 x 3 uint8, rgb, absent in 4 of 8 episodes" in info(dataset)
    assert "rgb_front      6 x 8 x 3 uint8, rgb\n" in info(dataset)
    rows = re.findall(r"(rgb_\w+|depth_\w+)6 × 8(?: × 3)? uint\d+\w+(?:, \[mm\])?(–|4 of 8)", elements.text)
    assert rows == [("rgb_front", "–"), ("rgb_wrist", "4 of 8"), ("depth_wrist", "4 of 8")]


def test_the_page_needs_nothing_beside_it(elements: Elements) -> None:
    assert elements.open == []
    sources = [attrs["src"] for _, attrs in elements.tags if "src" in attrs]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in elements.tags}
    assert not [attrs for _, attrs in elements.tags if "href" in attrs]


def test_the_page_says_what_is_inside(elements: Elements) -> None:
    for words in ("my demos", "episodes of robot arm: 12.0\u202fseconds", "2 cameras (front, wrist): real pictures"):
        assert words in elements.text
    assert "successful7 of 8" in elements.text
    assert "Delta: how far to move from the step before. Gripper binary: 0 is closed, 1 open." in elements.text
    assert elements.text.count("go <b>left</b>") >= 2  # as text, not as a tag
    assert "2 of 3" in elements.text  # of the task with a failure


def test_the_contact_sheet_shows_first_middle_and_last(dataset: Path, elements: Elements) -> None:
    shown = [int(i) for i in re.findall(r"episode (\d)", elements.text)]
    assert len(set(shown)) == info_page.SHOWN and shown == sorted(shown)
    assert elements.text.count("absent in this episode") == 2 * sum(i % 2 for i in shown)
    images = [picture(attrs["src"]) for tag, attrs in elements.tags if tag == "img"]
    assert len(images) == sum(3 if i % 2 else 9 for i in shown)
    store = Store.open(dataset)
    start, stop = store.bounds(shown[0])
    np.testing.assert_array_equal(images[:3], store.rows("rgb_front", [start, (start + stop - 1) // 2, stop - 1]))


def test_depth_is_grey_near_is_light_and_what_is_invalid_is_blue() -> None:
    depth = np.linspace(500, 1500, 400).astype(np.uint16).reshape(1, 20, 20)
    depth[0, 3, 3] = 0
    (grey,) = info_page._grey(depth)
    assert tuple(grey[3, 3]) == info_page.INVALID_RGB
    valid = np.delete(grey.reshape(-1, 3).astype(int), 63, 0)
    assert (np.ptp(valid, axis=1) == 0).all() and (np.diff(valid[:, 0]) <= 0).all()
    assert (valid[0, 0], valid[-1, 0]) == (235, 30)
    assert (info_page._grey(np.zeros((1, 2, 2), np.uint16)) == info_page.INVALID_RGB).all()


def heights(svg: str) -> list[float]:
    return [float(height) for height in re.findall(r"v-([\d.]+)", svg)]


def test_a_histogram_counts() -> None:
    values = np.repeat([0.0, 1.0, 4.0], [10, 20, 5])
    histogram = info_page._histogram("x", "m", np.r_[values, np.nan])
    assert (histogram.low, histogram.high, histogram.unit) == ("0", "4", "m")
    assert heights(histogram.svg) == [35.0, 70.0, 17.5]
    assert info_page._histogram("x", "1", np.full(9, 0.5)).svg == ""


def test_dimensions_that_never_change_are_told(elements: Elements) -> None:
    assert elements.text.count("always 0.25") == 1
    assert (
        len([tag for tag, attrs in elements.tags if attrs.get("class") == "hist"]) == 2 + 2 + 1
    )  # action, x y, lengths


def test_lengths_of_whole_steps_share_bars_fairly() -> None:
    """As many episodes of each of 60 lengths are as many in each bar."""
    bars = heights(info_page._lengths(np.arange(10, 70)))
    assert len(bars) == 30 and len(set(bars)) == 1
    assert info_page._lengths(np.array([7, 7])) == ""


def test_of_a_large_dataset_a_sample_is_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info_page, "SAMPLE", 50)
    store, read = Store.open(dataset), []
    rows = store.rows
    monkeypatch.setattr(store, "rows", lambda name, which: read.append((name, len(which))) or rows(name, which))
    assert "in 50 of 128 steps" in re.sub(r"\s+", " ", Elements(info_page.page(store)).text)
    assert dict(read)["action"] == dict(read)["proprio"] == 50


def test_the_page_of_a_dataset_without_episodes_or_actions(tmp_path: Path) -> None:
    camera = {"size": [4, 4], "intrinsics": None, "extrinsics": None}
    with Store.create(tmp_path / "v.zarr", StoreSpec({"eye": camera}, dt_s=0.1)) as store:
        assert "0.0\u202fseconds" in info_page.page(store)
        store.append(Episode({"rgb_eye": np.zeros((5, 4, 4, 3), np.uint8)}))
        text = Elements(info_page.page(store)).text
    assert "episode without actions: 0.4\u202fseconds" in text and "(no instruction)" in text
    assert "Numbers" not in text and "success" not in text


def test_the_command_writes_the_page(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert cli.main(["info", str(dataset), "--html", str(page)]) == 0
    assert capsys.readouterr().out.endswith(f"Page: {page}\n")
    assert page.read_text().startswith("<!doctype html>")
    save_policy(small_policy(steps=3), tmp_path / "p")
    assert cli.main(["info", str(tmp_path / "p"), f"--html={page}"]) == 2
    assert "--html shows datasets (zarr), and this is none" in capsys.readouterr().err
