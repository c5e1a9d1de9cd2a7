"""Videos as recordings: every frame with its own seconds, in bounded memory, and damage by name."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import films
import numpy as np
import pytest

from padpolicy.data import video
from padpolicy.data.convert import ConvertError, DamagedError, Options, convert, open_recording, videos
from padpolicy.data.store import Store
from padpolicy.data.validate import validate

REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "real" / "bridge_videos"
VARIABLE_S = np.cumsum([0, 0.02, 0.3, 0.1, 0.1, 0.5, 0.1, 0.2, 0.1, 0.1])


def write(path: Path, times_s, width=32, height=32) -> None:
    """Frame i has the grey level 20 + 8 i, right of a black edge."""

    def picture(i: int) -> np.ndarray:
        grey = np.full((height, width, 3), 20 + 8 * i, np.uint8)
        grey[:, :4] = 0
        return grey

    films.write_video(path, times_s, picture)


def numbers(rgb: np.ndarray) -> list[int]:
    """Which frames these are, by their grey levels."""
    return np.rint((rgb[:, 6:10, 4:12].mean((1, 2, 3)) - 20) / 8).astype(int).tolist()


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "v" / "push_the_cube_03.mp4", np.arange(20) / 20)
    write(tmp_path / "v" / "deep" / "variable.mkv", VARIABLE_S, width=32, height=18)
    return tmp_path / "v"


def test_every_frame_arrives_with_its_own_seconds(folder, tmp_path):
    (folder / "captions.jsonl").write_text(json.dumps({"file": "deep/variable.mkv", "caption": "lift the cube"}))
    done = convert(folder, tmp_path / "out.zarr", options=Options(image_size=16))
    store = Store.open(done.path)
    assert validate(done.path) == [] and sorted(store.fields) == ["rgb_front"]
    assert list(store.meta["episode_id"]) == ["deep/variable.mkv", "push_the_cube_03.mp4"]
    variable, steady = store.episode(0), store.episode(1)
    assert (variable.task, steady.task) == ("lift the cube", "")
    np.testing.assert_allclose(variable.arrays["timestamp"], VARIABLE_S, atol=2e-3)
    np.testing.assert_allclose(steady.arrays["timestamp"], np.arange(20) / 20, atol=2e-3)
    assert numbers(variable.arrays["rgb_front"]) == list(range(10)) and (variable.arrays["rgb_front"][:, :2] == 0).all()
    assert numbers(steady.arrays["rgb_front"]) == list(range(20))
    assert "1 of 2 videos have no caption" in done.notes[0]


def test_a_file_alone_is_a_recording_too(folder, tmp_path):
    (folder / "captions.csv").write_text("file,caption\npush_the_cube_03.mp4,push it\n")
    file = folder / "push_the_cube_03.mp4"
    assert videos.recognises(file) and not videos.recognises(folder / "captions.csv")
    convert(file, tmp_path / "out.zarr")
    store = Store.open(tmp_path / "out.zarr")
    assert store.episode(0).arrays["rgb_front"].shape == (20, 256, 256, 3) and store.episode(0).task == "push it"


def test_a_rate_chooses_frames_and_keeps_their_seconds(folder, tmp_path):
    convert(folder, tmp_path / "out.zarr", options=Options(image_size=16, fps=5))
    store = Store.open(tmp_path / "out.zarr")
    variable, steady = store.episode(0), store.episode(1)
    assert numbers(steady.arrays["rgb_front"]) == [0, 4, 8, 12, 16, 19]  # the last is nearest to 1 s
    np.testing.assert_allclose(steady.arrays["timestamp"], [0, 0.2, 0.4, 0.6, 0.8, 0.95], atol=2e-3)
    chosen = numbers(variable.arrays["rgb_front"])
    np.testing.assert_allclose(variable.arrays["timestamp"], VARIABLE_S[chosen], atol=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_frames_of_a_grid(seed):
    rng = np.random.default_rng(seed)
    times_s = np.cumsum(np.r_[0, rng.uniform(0.01, 0.4, 60)])
    chosen = videos.nearest_to_grid(times_s, 5)
    grid = np.arange(round(times_s[-1] * 5) + 1) / 5
    nearest = np.abs(times_s - grid[:, None]).argmin(1)
    served = np.abs(times_s[nearest] - grid) <= 0.1  # a grid point with no frame in its half step has none
    assert chosen.tolist() == nearest[served].tolist() and (np.diff(chosen) > 0).all() and chosen[0] == 0


def test_a_video_slower_than_the_rate_keeps_its_frames():
    assert videos.nearest_to_grid(np.arange(7) / 3, 30).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("name", "said"),
    [("push_the_cube_03.mp4", "push the cube"), ("sample_0.mp4", "sample"), ("0042.mp4", ""), ("a2b-7.mkv", "a2b")],
)
def test_names_are_words_only_where_they_are_asked_for(tmp_path, name, said):
    (tmp_path / name).touch()
    tasks = [open_recording(tmp_path, Options(task=task))._tasks[name] for task in ("", "wipe", "{name}", "now {name}")]
    assert tasks == ["", "wipe", said, f"now {said}".strip()]


def test_rows_are_the_same_in_any_order(folder):
    rows = open_recording(folder, Options(image_size=16)).episode(1).arrays["rgb_front"]
    whole = rows[0:20]
    assert rows.shape == whole.shape and rows.dtype == whole.dtype
    for part in (slice(0, 7), slice(7, 20), slice(3, 5), slice(10, 12), slice(18, 40)):
        np.testing.assert_array_equal(rows[part], whole[part])


def test_one_frame_is_held_at_a_time(folder, monkeypatch):
    """Each frame is decoded twice, for its time and for itself, and no further ahead than asked for."""
    pulled = []
    frames = video._frames

    def count(file):
        for frame in frames(file):
            pulled.append(file)
            yield frame

    monkeypatch.setattr(video, "_frames", count)
    rows = open_recording(folder, Options(image_size=16)).episode(1).arrays["rgb_front"]
    assert len(pulled) == 20
    for i in range(20):
        rows[i : i + 1]
        assert len(pulled) == 20 + i + 1


def test_damaged_files_stop_it_or_are_left_out(folder, tmp_path):
    whole = (folder / "push_the_cube_03.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for i in (0, 1):
        data = bytearray(whole)
        data[data.index(b"mdat") + 700 : data.index(b"mdat") + 720] = bytes(20)  # in the pictures
        (folder / f"holes{i}.mp4").write_bytes(data)
    with pytest.raises(DamagedError, match=r"episode cut.mp4: .*cut.mp4: it cannot be decoded .* Copy it again"):
        convert(folder, tmp_path / "out.zarr", options=Options(image_size=16))
    assert not (tmp_path / "out.zarr").exists()
    done = convert(folder, tmp_path / "out.zarr", options=Options(image_size=16, skip_damaged=True))
    assert done.episodes == 2 and sorted(done.skipped) == ["cut.mp4", "holes0.mp4", "holes1.mp4"]


def test_a_file_that_changes_while_it_is_read_is_damaged(folder):
    episode = open_recording(folder, Options(image_size=16)).episode(1)
    write(folder / "push_the_cube_03.mp4", np.arange(5) / 20)
    with pytest.raises(DamagedError, match="push_the_cube_03.mp4: it has fewer frames than a moment ago"):
        episode.arrays["rgb_front"][0:20]


def test_what_videos_cannot_have_is_said(folder):
    for options, message in (
        (Options(proprio=("state",)), "nothing that --proprio could be about"),
        (Options(action_kind="delta"), "nothing that --action-kind could be about"),
        (Options(cameras=("wrist",)), "one camera, 'front'; --cameras asks for wrist"),
    ):
        with pytest.raises(ConvertError, match=message):
            open_recording(folder, options)
    (folder / "captions.csv").write_text("file,caption\nnowhere.mp4,push it\n")
    with pytest.raises(ConvertError, match="captions name 'nowhere.mp4'"):
        open_recording(folder)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real recordings are not beside the repository")
def test_real_videos(tmp_path):
    done = convert(REAL, tmp_path / "out.zarr", options=Options(image_size=64, task="tidy up"))
    store = Store.open(done.path)
    assert [store.bounds(i)[1] - store.bounds(i)[0] for i in range(3)] == [31, 25, 34]
    np.testing.assert_allclose(store.episode(1).arrays["timestamp"], np.arange(25) / 3, atol=1e-6)
    assert store.episode(2).task == "tidy up" and store.episode(0).arrays["rgb_front"].std() > 20
