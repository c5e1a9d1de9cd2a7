"""Folders of video files: whatever a person puts into one loads, and what cannot be read is named."""

import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import films
import numpy as np
import pytest

from padpolicy.config import DataConfig
from padpolicy.data.dataset import BatchStream, open_mixture, open_source
from padpolicy.data.store import StoreError
from padpolicy.data.validate import validate
from padpolicy.data.video import CAMERA, cache_folder, decode, frame_times, open_folder

CFG = {"image_size": 16, "cameras": ["front"], "depth_cameras": [], "future_depth_cameras": [], "val_fraction": 0.0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PADPOLICY_CACHE", str(tmp_path / "cache"))


def write_video(path, times_s, width=32, height=32) -> None:
    """A video that gets brighter by 4 with every frame, at the given seconds."""
    films.write_video(path, times_s, lambda i: np.full((height, width, 3), 20 + 4 * i, np.uint8))


def write_frame(path, rgb, pixel_aspect=None) -> None:
    """A video of three times the same picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *rgb.shape[:2], "yuv420p"
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


def set_display_matrix(path, matrix) -> None:
    """Overwrites the nine numbers (a b u c d v x y w) of an mp4's only track header, placed as in ISO/IEC 14496-12."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    units = [1 << 16, 1 << 16, 1 << 30] * 3  # fixed point
    data[at : at + 36] = struct.pack(">9i", *(value * unit for value, unit in zip(matrix, units, strict=True)))
    path.write_bytes(data)


VARIABLE_S = np.cumsum([0, 0.1, 0.3, 0.1, 0.1, 0.5, 0.1, 0.2, 0.1, 0.1])


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "v" / "slow.mp4", np.arange(20) / 5)
    write_video(tmp_path / "v" / "deep" / "fast.mp4", np.arange(30) / 60, width=64, height=36)
    write_video(tmp_path / "v" / "variable.mkv", VARIABLE_S, width=30, height=60)
    return tmp_path / "v"


def test_mixed_rates_sizes_and_shapes_load_with_their_own_seconds(folder):
    (folder / "captions.jsonl").write_text(
        json.dumps({"file": "slow.mp4", "caption": "push the cube"})
        + "\n"
        + json.dumps({"file": "deep/fast.mp4", "caption": ""})
    )
    store = open_folder(folder, 16)
    episodes = {(e := store.episode(i)).id: e for i in range(store.n_episodes)}
    assert sorted(episodes) == ["deep/fast.mp4", "slow.mp4", "variable.mkv"]
    assert {name: e.task for name, e in episodes.items()} == {
        "slow.mp4": "push the cube",
        "deep/fast.mp4": "",
        "variable.mkv": "",
    }
    np.testing.assert_allclose(episodes["variable.mkv"].arrays["timestamp"], VARIABLE_S, atol=2e-3)
    assert np.diff(episodes["deep/fast.mp4"].arrays["timestamp"]).min() > 0.045  # 60 frames/s are thinned
    wide, tall = (episodes[name].arrays[f"rgb_{CAMERA}"] for name in ("deep/fast.mp4", "variable.mkv"))
    assert wide.shape[1:] == tall.shape[1:] == (16, 16, 3)
    assert (wide[:, :3] == 0).all() and (wide[:, 5:11] > 10).all()  # bars above, picture in the middle
    assert (tall[:, :, :4] == 0).all() and (tall[:, :, 5:11] > 10).all()
    assert [finding for finding in validate(store.path) if finding.level == "error"] == []


# (x, y) of the file is shown at (a x + c y + tx, b x + d y + ty); x goes right, y down, the picture is 64 x 32.
@pytest.mark.parametrize(
    ("matrix", "red_corner", "upright"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), "top left", False),
        ((0, 1, 0, -1, 0, 0, 32, 0, 1), "top right", True),  # a phone held upright: a quarter turn clockwise
        ((-1, 0, 0, 0, -1, 0, 64, 32, 1), "bottom right", False),
        ((0, -1, 0, 1, 0, 0, 0, 64, 1), "bottom left", True),
    ],
)
def test_turned_recordings_are_shown_upright(tmp_path, matrix, red_corner, upright):
    picture = np.full((32, 64, 3), (0, 0, 200), np.uint8)
    picture[:16, :32] = (200, 0, 0)
    write_frame(tmp_path / "x.mp4", picture)
    set_display_matrix(tmp_path / "x.mp4", matrix)
    for _, rgb in decode(tmp_path / "x.mp4", 32):
        assert bool((rgb[:, :7] < 20).all()) == upright and bool((rgb[:7] < 20).all()) != upright  # the bars
        inner = rgb[:, 8:24] if upright else rgb[8:24]
        redness = inner[..., 0].astype(int) - inner[..., 2]
        half = {"top": slice(0, inner.shape[0] // 2), "bottom": slice(inner.shape[0] // 2, None)}
        side = {"left": slice(0, inner.shape[1] // 2), "right": slice(inner.shape[1] // 2, None)}
        red = {f"{y} {x}": redness[half[y], side[x]].mean() > 0 for y in half for x in side}
        assert [corner for corner in red if red[corner]] == [red_corner]


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    write_frame(tmp_path / "x.mkv", np.full((32, 32, 3), 200, np.uint8), pixel_aspect=Fraction(2, 1))
    _, rgb = next(decode(tmp_path / "x.mkv", 32))
    assert (rgb[:7] < 20).all() and (rgb[9:23] > 150).all() and (rgb[25:] < 20).all()


def test_a_folder_is_a_source_like_any_other(folder):
    (folder / "captions.csv").write_text("file,caption\nslow.mp4,push the cube\n")
    cfg = DataConfig(videos=[str(folder)], future_offsets_s=[0.4], **CFG)
    mixture = open_mixture(cfg)
    batch = BatchStream(mixture, 32, seed=0)[0]
    assert batch.fields["obs.rgb_front"].shape == (32, 1, 16, 16, 3) and "action" not in batch.fields
    assert 0 < batch.has["text"].sum() < 32
    slow = open_source(folder, cfg).sample(int(open_folder(folder, 16).episode_ends[0]), np.random.default_rng(0))
    level = {axis: slow.fields[f"{axis}.rgb_front"].mean() for axis in ("obs", "future")}
    assert abs(level["future"] - level["obs"] - 8) < 3  # two frames at 5 a second
    assert slow.time_s["future"] == pytest.approx([0.4], abs=1e-3)


def test_video_speed_reaches_further_into_slower_robots(folder):
    cfg = DataConfig(videos=[str(folder)], future_offsets_s=[0.8], video_speed=2.0, **CFG)
    slow = open_source(folder, cfg).sample(int(open_folder(folder, 16).episode_ends[0]), np.random.default_rng(0))
    assert slow.time_s["future"] == pytest.approx([0.8], abs=2e-3)  # 0.4 s of the video
    assert abs(slow.fields["future.rgb_front"].mean() - slow.fields["obs.rgb_front"].mean() - 8) < 3


def test_decoded_once_and_again_when_a_file_changes(folder):
    first = open_folder(folder, 16)
    stamp = (first.path / "zarr.json").stat().st_mtime_ns
    assert (open_folder(folder, 16).path / "zarr.json").stat().st_mtime_ns == stamp
    assert open_folder(folder, 24).path != first.path
    os.utime(folder / "slow.mp4", (1, 1))
    assert open_folder(folder, 16).path != first.path
    assert not list(cache_folder().glob("*.partial"))


def test_a_killed_decoding_goes_on_with_the_file_it_was_at(folder):
    def stop(done: int, files: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_folder(folder, 16, stop)
    for file in sorted(folder.rglob("*.mp4")):  # nobody reads them a second time
        stat = file.stat()
        file.write_bytes(bytes(stat.st_size))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    store = open_folder(folder, 16)
    assert list(store.meta["episode_id"]) == ["deep/fast.mp4", "slow.mp4", "variable.mkv"]
    assert list(cache_folder().iterdir()) == [store.path]


def test_several_processes_at_once_decode_once(folder):
    seen = []
    with ThreadPoolExecutor(3) as pool:  # a lock is held by an open file: threads exclude each other as processes do
        stores = list(pool.map(lambda _: open_folder(folder, 16, lambda *progress: seen.append(progress)), range(3)))
    assert [store.n_episodes for store in stores] == [3, 3, 3] and seen == [(1, 3), (2, 3), (3, 3)]
    assert list(cache_folder().iterdir()) == [stores[0].path]


def test_damaged_files_are_named_and_left_out(folder):
    data = (folder / "slow.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 3])
    (folder / "empty.mp4").write_bytes(b"")
    assert {f.where: f.level for f in validate(folder) if f.level != "info"} == {
        "cut.mp4": "warning",
        "empty.mp4": "warning",
    }
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning) as caught:
            store = open_folder(folder, 16)
        text = " ".join(str(warning.message) for warning in caught)
        assert "cut.mp4 is left out" in text and "empty.mp4 is left out" in text
        assert store.n_episodes == 3


def test_a_folder_without_a_readable_video_is_an_error(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(StoreError, match="neither a store nor a folder with video files"):
        open_source(tmp_path / "none", DataConfig(**CFG))
    (tmp_path / "none" / "x.mp4").write_bytes(b"no video")
    with pytest.raises(StoreError, match="none of 1 video files can be read; x.mp4: it cannot be decoded"):
        open_folder(tmp_path / "none", 16)
    assert not list(cache_folder().iterdir())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.jsonl", '{"file": "nowhere.mp4", "caption": "x"}', "captions name 'nowhere.mp4'"),
        ("captions.jsonl", '{"path": "slow.mp4"}', "expected .* a line"),
        ("captions.jsonl", "{", "cannot be read"),
        ("captions.jsonl", '{"file": "slow.mp4", "caption": 5}', "cannot be read"),
        ("captions.csv", "a,b\n1,2\n", "expected the header file,caption"),
    ],
)
def test_bad_captions_are_errors(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(StoreError, match=message):
        open_folder(folder, 16)
    assert [(f.level, f.where) for f in validate(folder)] == [("error", "captions")]


@pytest.mark.parametrize(("name", "share"), [("cut.mkv", 0.8), ("cut.avi", 0.2)])
def test_a_file_that_was_cut_short_is_left_out_whole(folder, name, share):
    write_video(folder / name, np.arange(40) / 10)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.warns(UserWarning, match=rf"{name} is left out: it cannot be decoded \(it ends after .* of 3.9 s"):
        assert open_folder(folder, 16).n_episodes == 3


def test_frames_in_the_wrong_order_are_left_out(tmp_path):
    write_video(tmp_path / "x.avi", np.arange(30) / 10)  # its container has no times of presentation
    times_s = frame_times(tmp_path / "x.avi")
    assert len(times_s) > 20 and (np.diff(times_s) > 0).all()


def test_chosen_frames_are_those_of_their_numbers(folder):
    file = folder / "variable.mkv"
    every = list(decode(file, 16, np.arange(len(VARIABLE_S))))
    some = list(decode(file, 16, np.array([2, 3, 9])))
    assert [time_s for time_s, _ in some] == [every[i][0] for i in (2, 3, 9)]
    np.testing.assert_array_equal([rgb for _, rgb in some], [every[i][1] for i in (2, 3, 9)])
    np.testing.assert_array_equal(frame_times(file), [time_s for time_s, _ in every])
