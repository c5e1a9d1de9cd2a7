"""LeRobotDataset: v2.1 and v3.0 written here by the letter of the format, and our own v3.0 there and back."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from padpolicy.data.convert import ConvertError, DamagedError, Options, convert, open_recording
from padpolicy.data.convert import lerobot_writer as writer
from padpolicy.data.convert.lerobot import depth_codes
from padpolicy.data.convert.lerobot_video import Video, encode, join
from padpolicy.data.store import Episode, Store

SIZE = (32, 48)  # H, W of the foreign pictures
LENGTHS = (7, 12, 5, 9)
TEXTS = ("open the drawer", "push the cube")
SAID = ("task", "success", "seed", "source", "id")


def level(episode: int, step: int) -> int:
    """The grey of a frame: no two of nearby frames are alike."""
    return 20 + (37 * episode + 16 * step) % 210


def grey(episode: int, step: int, size=SIZE) -> np.ndarray:
    return np.full((*size, 3), level(episode, step), np.uint8)


def greys(frames: np.ndarray) -> list[int]:
    """The nearest grey that a frame can be of: what lossy compression leaves of `level`."""
    return np.asarray(frames, float).mean((1, 2, 3)).round().astype(int).tolist()


def assert_greys(frames: np.ndarray, episode: int, n: int) -> None:
    assert np.abs(np.array(greys(frames)) - [level(episode, t) for t in range(n)]).max() <= 3


def png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def h264(path: Path, frames: list[np.ndarray], fps: int = 10) -> None:
    """With frames that are stored in another order than they are shown, few key frames, and its index at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"g": "12", "bf": "2", "crf": "15"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def numbers(episode: int, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(episode)
    return {"state": rng.normal(size=(n, 3)).astype(np.float32), "action": rng.normal(size=(n, 2)).astype(np.float32)}


def rows(episode: int, n: int, first: int) -> dict[str, pa.Array]:
    """The columns of an episode whose first row is number `first` of all."""
    vectors = numbers(episode, n)
    flags = np.arange(n) == (n - 1 if episode != 1 else n)
    return {
        "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(vectors["state"].ravel()), 3),
        "action": pa.array(vectors["action"].tolist(), pa.list_(pa.float32())),
        "observation.images.still": pa.array(
            [{"bytes": png(grey(episode, t, (8, 6))), "path": None} for t in range(n)],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "next.success": pa.array(flags),
        "timestamp": pa.array((np.arange(n) / 10).astype(np.float32)),
        "frame_index": pa.array(np.arange(n)),
        "episode_index": pa.array(np.full(n, episode)),
        "index": pa.array(first + np.arange(n)),
        "task_index": pa.array(np.full(n, episode % 2)),
    }


def write_info(root: Path, version: str, **changes) -> None:
    features = {
        "observation.images.top.left": {
            "dtype": "video",
            "shape": [*SIZE, 3],
            "names": ["height", "width", "channels"],
        },
        "observation.images.still": {"dtype": "image", "shape": [3, 8, 6], "names": ["channels", "height", "width"]},
        "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["a", "b", "c"]}},
        "action": {"dtype": "float32", "shape": [2], "names": None},
        "next.success": {"dtype": "bool", "shape": [1], "names": None},
        "note": {"dtype": "string", "shape": [1], "names": None},
    }
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "chunks_size": 3,
        "fps": 10,
        "features": features,
    }
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info | changes))


def write_v2(root: Path) -> Path:
    """One file an episode, three of them a folder."""
    paths = {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    write_info(root, "v2.1", **paths)
    lines = {"episodes": [], "tasks": [{"task_index": i, "task": text} for i, text in enumerate(TEXTS)]}
    for i, n in enumerate(LENGTHS):
        file = root / paths["data_path"].format(episode_chunk=i // 3, episode_index=i)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows(i, n, sum(LENGTHS[:i]))), file)
        place = {"video_key": "observation.images.top.left", "episode_chunk": i // 3, "episode_index": i}
        h264(root / paths["video_path"].format(**place), [grey(i, t) for t in range(n)])
        lines["episodes"].append({"episode_index": i, "tasks": [TEXTS[i % 2]], "length": n})
    for name, entries in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return root


def write_v3(root: Path) -> Path:
    """Episodes 0 to 2 in the first files, all their rows in one row group; times that have drifted."""
    write_info(root, "v3.0", data_path=writer._DATA_PATH, video_path=writer._VIDEO_PATH)
    key, groups = "observation.images.top.left", ((0, 1, 2), (3,))
    table = []
    for file, episodes in enumerate(groups):
        first = sum(LENGTHS[: episodes[0]])
        parts = [pa.table(rows(i, LENGTHS[i], sum(LENGTHS[:i]))) for i in episodes]
        path = root / writer._DATA_PATH.format(chunk_index=0, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(parts).combine_chunks(), path)
        frames = [grey(i, t) for i in episodes for t in range(LENGTHS[i])]
        h264(root / writer._VIDEO_PATH.format(video_key=key, chunk_index=0, file_index=file), frames)
        for i in episodes:
            start = sum(LENGTHS[:i])
            row = {"episode_index": i, "tasks": [TEXTS[i % 2]], "length": LENGTHS[i]}
            row |= {"data/chunk_index": 0, "data/file_index": file}
            row |= {"dataset_from_index": start, "dataset_to_index": start + LENGTHS[i]}
            row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": file}
            row |= {f"videos/{key}/from_timestamp": (start - first) / 10 + 0.013 * i}
            row |= {
                f"videos/{key}/to_timestamp": (start - first + LENGTHS[i]) / 10 + 0.013 * i,
                "stats/action/min": [0.0],
            }
            table.append(row)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(table), root / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": range(len(TEXTS)), "__index_level_0__": TEXTS})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    return root


@pytest.fixture(scope="module", params=[write_v2, write_v3], ids=["v2.1", "v3.0"])
def original(request, tmp_path_factory) -> Path:
    return request.param(tmp_path_factory.mktemp("original") / "foreign")


@pytest.fixture
def foreign(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "foreign")


def check_foreign(store: Store) -> None:
    assert list(store.cameras) == ["top_left", "still"] and store.cameras["still"]["size"] == [8, 6]
    assert store.fields["proprio"]["names"] == ["a", "b", "c"] and store.robot == "so100" and store.spec.dt_s == 0.1
    assert store.action_spec.names == ["action_0", "action_1"] and store.action_spec.kind == "unknown"
    assert [task["name"] for task in store.tasks] == list(TEXTS)
    for i, n in enumerate(LENGTHS):
        episode = store.episode(i)
        assert (episode.task, episode.success, episode.id) == (TEXTS[i % 2], i != 1, f"episode_{i:06d}")
        np.testing.assert_array_equal(episode.arrays["proprio"], numbers(i, n)["state"])
        np.testing.assert_array_equal(episode.arrays["action"], numbers(i, n)["action"])
        np.testing.assert_array_equal(episode.arrays["timestamp"], np.arange(n) / 10)
        np.testing.assert_array_equal(episode.arrays["rgb_still"], [grey(i, t, (8, 6)) for t in range(n)])
        assert_greys(episode.arrays["rgb_top_left"], i, n)


def test_what_others_wrote_is_read(foreign, tmp_path):
    done = convert(foreign, tmp_path / "s.zarr")
    check_foreign(Store.open(done.path))
    assert done.format == f"LeRobotDataset {'v3.0' if (foreign / 'meta/tasks.parquet').exists() else 'v2.1'}"
    assert any("kind of the actions is unknown" in note for note in done.notes)
    assert "feature note (string, [1]) is left out." in done.notes


def test_v2_0_is_read_too(tmp_path):
    root = write_v2(tmp_path / "foreign")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    check_foreign(Store.open(convert(root, tmp_path / "s.zarr").path))


def test_episodes_in_any_order_and_rows_in_any_order(foreign):
    recording = open_recording(foreign)
    for i in (3, 1, 2, 0, 1):
        arrays = recording.episode(i).arrays
        for start, stop in ((2, 5), (0, 3), (4, 5), (0, LENGTHS[i]), (3, 3)):
            expected = [level(i, t) for t in range(start, stop)]
            assert greys(arrays["rgb_still"][start:stop]) == expected
            assert np.abs(np.array(greys(arrays["rgb_top_left"][start:stop])) - expected).sum() <= 3 * len(expected)
    recording.close()


def test_options(foreign):
    recording = open_recording(
        foreign, Options(cameras=("top_left",), robot="arm", action_kind="absolute", image_size=16, proprio=("action",))
    )
    assert list(recording.spec.cameras) == ["top_left"] and recording.spec.robot == "arm"
    assert recording.spec.action.kind == "absolute" and recording.spec.proprio["names"] == ["action_0", "action_1"]
    frames = recording.episode(0).arrays["rgb_top_left"]
    assert frames.shape == (7, 16, 16, 3) and frames[0:1].shape == (1, 16, 16, 3)
    assert (frames[0:1][0, 0] == 0).all() and abs(int(frames[0:1][0, 8, 8, 0]) - level(0, 0)) <= 3
    both = open_recording(foreign, Options(proprio=("observation.state", "action")))
    assert both.spec.proprio["names"] == ["state.a", "state.b", "state.c", "action.action_0", "action.action_1"]
    for options, message in (
        (Options(fps=10), "no use for --fps"),
        (Options(cameras=("left",)), "no camera 'left'; there are top_left, still"),
        (Options(proprio=("note",)), "--proprio note: there is no such vector; there are observation.state, action"),
    ):
        with pytest.raises(ConvertError, match=message):
            open_recording(foreign, options)


def test_a_task_that_changes_is_noted_and_the_first_is_taken(tmp_path):
    root = write_v2(tmp_path / "foreign")
    file = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(file)
    changed = pa.array([1, 1, 1, 0, 0, 0, 0])
    pq.write_table(table.set_column(table.column_names.index("task_index"), "task_index", changed), file)
    recording = open_recording(root)
    assert recording.episode(0).task == TEXTS[1]
    assert any("tasks change within episodes" in note for note in recording.notes.lines)


# -- depth -----------------------------------------------------------------------------------------------------------


def test_depth_codes_are_the_formats():
    log = depth_codes(0.01, 10.0, 3.5, True)
    for mm in (200, 1234, 5000, 9990):
        code = round(4095 * (np.log(mm / 1000 + 3.5) - np.log(3.51)) / (np.log(13.5) - np.log(3.51)))
        assert abs(int(log[code]) - mm) <= 2
    assert log[0] == 0 and log[4095] == 10000 and (np.diff(log[1:].astype(int)) >= 0).all()
    np.testing.assert_array_equal(depth_codes(0.0, 4.095, 0.0, False), np.arange(4096))


def test_depth_of_videos_and_pictures(tmp_path):
    root = write_v3(tmp_path / "foreign")
    rng = np.random.default_rng(0)
    n = sum(LENGTHS)
    codes, depth_m = rng.integers(0, 4096, (n, *SIZE), np.uint16), rng.uniform(0, 3, (n, 8, 6)).astype(np.float32)
    depth_m[:, 0] = np.nan
    pictures = []
    for frame in depth_m:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "TIFF")
        pictures.append({"bytes": stream.getvalue(), "path": None})
    info = json.loads((root / "meta/info.json").read_text())
    key, apart = "observation.images.top.left_depth", "observation.images.far"
    info["features"][key] = {"dtype": "video", "shape": [*SIZE, 1], "names": ["height", "width", "channels"]}
    info["features"][key]["info"] = {"is_depth_map": True, "video.pix_fmt": "gray12le", "video.use_log": False}
    info["features"][apart] = {"dtype": "image", "shape": [8, 6, 1], "names": None, "info": {"is_depth_map": True}}
    info["features"][apart]["info"]["depth_unit"] = "m"
    (root / "meta/info.json").write_text(json.dumps(info))
    for file, (start, stop) in enumerate(((0, 24), (24, 33))):
        path = root / writer._VIDEO_PATH.format(video_key=key, chunk_index=0, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=10)
            stream.height, stream.width, stream.pix_fmt = *SIZE, "gray12le"
            for plane in codes[start:stop]:
                frame = av.VideoFrame(SIZE[1], SIZE[0], "gray12le")
                padded = np.zeros((SIZE[0], frame.planes[0].line_size // 2), "<u2")
                padded[:, : SIZE[1]] = plane
                frame.planes[0].update(padded.tobytes())
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        data = root / writer._DATA_PATH.format(chunk_index=0, file_index=file)
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pq.read_table(data).append_column(apart, pa.array(pictures[start:stop], kind)), data)
    episodes = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(episodes)
    for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp"):
        table = table.append_column(f"videos/{key}/{name}", table[f"videos/observation.images.top.left/{name}"])
    pq.write_table(table, episodes)

    done = convert(root, tmp_path / "s.zarr")
    store = Store.open(done.path)
    assert store.spec.depth_cameras == ["top_left", "far"] and store.optional == ["rgb_far"]
    np.testing.assert_array_equal(store.read("depth_top_left", 0, n), depth_codes(0.01, 10, 3.5, False)[codes])
    expected_mm = np.rint(np.nan_to_num(depth_m.astype(np.float64) * 1000)).astype(np.uint16)
    np.testing.assert_array_equal(store.read("depth_far", 0, n), expected_mm)
    assert not store.has("rgb_far", 0)
    assert any("depths up to 10 mm" in note for note in done.notes)


# -- ours ------------------------------------------------------------------------------------------------------------


_OURS: list[Path] = []  # made once; nobody writes to it


@pytest.fixture
def ours(tmp_path_factory, build) -> Path:
    """A store with all that LeRobot has no word for."""
    if not _OURS:
        _OURS.append(write_ours(tmp_path_factory.mktemp("ours") / "s.zarr", build))
    return _OURS[0]


def write_ours(path: Path, build) -> Path:
    spec = build.spec(optional=["rgb_wrist", "depth_front"], executed=True, extra={"place": "lab 3"})
    with Store.create(path, spec) as store:
        for i in range(5):
            episode = build.episode(i, spec, length=6 + i)
            n = len(episode)
            episode.arrays["rgb_front"] = np.stack([grey(i, t, (16, 16)) for t in range(n)])
            episode.arrays["rgb_wrist"] = np.stack([grey(i + 5, t, (16, 16)) for t in range(n)])
            episode.arrays["executed"] = -episode.arrays["action"]
            if i == 1:
                del episode.arrays["rgb_wrist"], episode.arrays["depth_front"]
            if i == 2:
                episode.arrays["timestamp"] = np.cumsum(np.random.default_rng(0).uniform(0.01, 1, n))
                episode.task = "tidy up"
            if i == 3:
                episode.task = ""
            store.append(episode)
    return path


def assert_ours(got, expected: Path) -> None:
    """A store or a recording is the same as a store, but for what lossy video does to colours."""
    store = Store.open(expected)
    assert got.spec == store.spec
    for i in range(store.n_episodes):
        a, b = got.episode(i), store.episode(i)
        assert set(a.arrays) == set(b.arrays)
        assert [getattr(a, name) for name in SAID] == [getattr(b, name) for name in SAID]
        for name in b.arrays:
            if not name.startswith("rgb_"):
                np.testing.assert_array_equal(a.arrays[name][0 : len(b)], b.arrays[name], err_msg=name)
        assert_greys(a.arrays["rgb_front"][0 : len(b)], i, len(b))
        if "rgb_wrist" in b.arrays:
            assert_greys(a.arrays["rgb_wrist"][0 : len(b)], i + 5, len(b))


@pytest.mark.parametrize("files", ["one", "many"])
def test_ours_there_and_back(ours, tmp_path, monkeypatch, files):
    if files == "many":
        monkeypatch.setattr(writer, "DATA_MB", 0)
        monkeypatch.setattr(writer, "_VIDEO_S", 1.5)
        monkeypatch.setattr(writer, "CHUNK_FILES", 2)
        monkeypatch.setattr(writer, "_BLOCK_BYTES", 2000)
    convert(ours, tmp_path / "l", "lerobot")
    assert sorted(f.name for f in (tmp_path / "l").iterdir()) == ["data", "meta", "videos"]
    videos = sorted(f.relative_to(tmp_path / "l").as_posix() for f in (tmp_path / "l/videos").rglob("*.mp4"))
    assert len(videos) == 2 if files == "one" else "videos/observation.images.wrist/chunk-001/file-000.mp4" in videos
    assert len(list((tmp_path / "l/data").rglob("*.parquet"))) == (1 if files == "one" else 5)
    back = Store.open(convert(tmp_path / "l", tmp_path / "back.zarr").path)
    assert_ours(back, ours)
    assert back.attrs == Store.open(ours).attrs


def test_what_others_find_in_what_we_write(ours, tmp_path):
    root = convert(ours, tmp_path / "l", "lerobot").path
    store = Store.open(ours)
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v3.0", 10, 5)
    assert info["total_frames"] == store.n_rows and info["splits"] == {"train": "0:5"} and info["total_tasks"] == 4
    data = pq.ParquetFile(root / "data/chunk-000/file-000.parquet")
    assert [data.metadata.row_group(i).num_rows for i in range(5)] == np.diff(store.episode_ends, prepend=0).tolist()
    columns = [key for key, feature in info["features"].items() if feature["dtype"] != "video"]
    assert data.schema_arrow.names == columns
    described = json.loads(data.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert list(described) == columns and described["action"]["length"] == 4
    table = data.read()
    assert table["index"].to_pylist() == list(range(store.n_rows))
    starts = np.r_[0, store.episode_ends[:-1]]
    np.testing.assert_array_equal(table["index"].to_numpy()[table["frame_index"].to_numpy() == 0], starts)
    tasks = pq.read_table(root / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert tasks["task"].to_pylist() == ["push the cube", "lift the cube", "tidy up", ""]
    episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_to_index"] for row in episodes] == store.episode_ends.tolist()
    assert [row["videos/observation.images.front/from_timestamp"] for row in episodes] == (starts / 10).tolist()
    video = Video(root / "videos/observation.images.wrist/chunk-000/file-000.mp4")
    assert len(video) == store.n_rows
    absent = [video.rgb(frame) for frame in video.frames(*store.bounds(1))]
    assert max(frame.max() for frame in absent) <= 3  # black
    video.close()


def test_statistics(ours, tmp_path):
    root = convert(ours, tmp_path / "l", "lerobot").path
    store, stats = Store.open(ours), json.loads((root / "meta/stats.json").read_text())
    action = store.read("action", 0, store.n_rows).astype(np.float64)
    for name, expected in (
        ("min", action.min(0)),
        ("max", action.max(0)),
        ("mean", action.mean(0)),
        ("std", action.std(0)),
    ):
        np.testing.assert_allclose(stats["action"][name], expected, rtol=1e-9)
    assert stats["action"]["count"] == [store.n_rows] and stats["frame_index"]["min"] == [0.0]
    there = np.concatenate([store.read("depth_front", *store.bounds(i)) for i in (0, 2, 3, 4)])
    depth = stats["observation.images.front_depth"]
    assert np.shape(depth["mean"]) == (1, 1, 1) and depth["count"] == [len(there)]
    np.testing.assert_allclose(
        [depth[k][0][0][0] for k in ("min", "max", "mean", "std")],
        [there.min(), there.max(), there.mean(), there.std()],
    )
    front = store.read("rgb_front", 0, store.n_rows) / 255
    colours = stats["observation.images.front"]
    np.testing.assert_allclose(np.ravel(colours["mean"]), front.mean((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(colours["std"]), front.std((0, 1, 2)))
    one = writer.vector_stats(np.random.default_rng(0).permutation(np.arange(101.0)))
    assert (one["q01"], one["q90"], one["count"]) == ([1.0], [90.0], [101])
    assert len(writer.sampled(50)) == 50 and len(writer.sampled(2000)) == 299 and max(writer.sampled(2000)) == 1999


class Stop(BaseException):
    """As if the process was killed."""


@pytest.mark.parametrize("where", ["encode", "_write_json", "join", "info", "rename", "rmtree"])
def test_killed_anywhere_it_goes_on(ours, tmp_path, monkeypatch, where):
    calls = []

    def dies(function, at, fits=lambda *args: True):
        def call(*args, **kwargs):
            if fits(*args):
                calls.append(args)
                if len(calls) == at:
                    raise Stop
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if where == "encode":
            patch.setattr(writer, "encode", dies(encode, 6))
        elif where == "join":
            patch.setattr(writer, "join", dies(join, 2))
        elif where in ("_write_json", "info"):
            name = "info.json" if where == "info" else "episode.json"
            patch.setattr(
                writer,
                "_write_json",
                dies(writer._write_json, 1 if where == "info" else 3, lambda f, _: f.name == name),
            )
        elif where == "rename":
            patch.setattr(writer.os, "rename", dies(writer.os.rename, 1, lambda a, b: Path(b).name == ".parts.old"))
        else:
            patch.setattr(
                writer.shutil,
                "rmtree",
                dies(shutil.rmtree, 1, lambda p, *_: Path(p).name == ".parts.old" and Path(p).exists()),
            )
        with pytest.raises(Stop):
            convert(ours, tmp_path / "l", "lerobot")
    assert not (tmp_path / "l").exists() and calls
    encoded = []
    monkeypatch.setattr(writer, "encode", lambda *args: (encoded.append(args), encode(*args)))
    convert(ours, tmp_path / "l", "lerobot")
    assert len(encoded) == {"encode": 6, "_write_json": 6}.get(where, 0)  # two cameras an episode; nothing done twice
    monkeypatch.undo()
    assert_ours(open_recording(tmp_path / "l"), ours)


def test_what_cannot_be_written_says_why(tmp_path, build):
    spec = build.spec()
    for change, message in (
        ({"dt_s": 0.0}, "one frame rate"),
        ({"cameras": {"a/b": spec.cameras["front"]}}, "names with '/'"),
    ):
        with pytest.raises(ConvertError, match=message):
            writer.LeRobotWriter(tmp_path / "l", build.spec(**{"depth_cameras": []} | change))
    written = writer.LeRobotWriter(tmp_path / "l", spec)
    episode = build.episode(0, spec)
    for name, values, message in (
        ("proprio", np.full((len(episode), 3), np.nan, np.float32), "e0: proprio is NaN"),
        ("timestamp", np.zeros(len(episode)), "e0: timestamp is not increasing"),
        ("rgb_front", np.zeros((len(episode), 8, 8, 3), np.uint8), r"e0: rgb_front is uint8 .* expected uint8"),
        ("other", np.zeros(len(episode)), "e0: it has"),
    ):
        with pytest.raises(DamagedError, match=message):
            written.append(Episode({**episode.arrays, name: values}, id="e0"))
    assert written.done == set() and list((tmp_path / "l/.parts").iterdir()) == []


def test_a_frame_rate_that_is_no_whole_number(tmp_path, build):
    action = dataclasses.replace(build.spec().action, dt_s=0.03)
    with Store.create(tmp_path / "s.zarr", build.spec(dt_s=0.03, action=action)) as store:
        for i in range(3):
            episode = build.episode(i, build.spec(), length=20)
            del episode.arrays["timestamp"]
            episode.arrays["rgb_front"] = np.stack([grey(i, t, (16, 16)) for t in range(len(episode))])
            store.append(episode)
    root = convert(tmp_path / "s.zarr", tmp_path / "l", "lerobot").path
    assert json.loads((root / "meta/info.json").read_text())["fps"] == pytest.approx(100 / 3)
    recording = open_recording(root)
    for i in range(3):
        got, expected = recording.episode(i), Store.open(tmp_path / "s.zarr").episode(i)
        np.testing.assert_array_equal(got.arrays["timestamp"], expected.arrays["timestamp"])
        assert_greys(got.arrays["rgb_front"][0:20], i, 20)


def test_only_some_cameras_of_ours(ours, tmp_path):
    root = convert(ours, tmp_path / "l", "lerobot").path
    recording = open_recording(root, Options(cameras=("wrist",), robot="arm 2"))
    assert list(recording.spec.cameras) == ["wrist"] and recording.spec.robot == "arm 2"
    assert recording.spec.optional == ["rgb_wrist"] and "rgb_wrist" not in recording.episode(1).arrays
    with pytest.raises(ConvertError, match="says itself what --action-kind would"):
        open_recording(root, Options(action_kind="delta"))


# -- videos ----------------------------------------------------------------------------------------------------------


def test_frames_of_joined_videos_by_number(tmp_path):
    parts, n = [], 0
    for k, length in enumerate((7, 30, 1, 12)):
        encode(tmp_path / f"{k}.mp4", [grey(k, t) for t in range(length)], SIZE, Fraction(25))
        parts.append((tmp_path / f"{k}.mp4", length))
        n += length
    join(parts, tmp_path / "all.mp4", Fraction(25))
    video = Video(tmp_path / "all.mp4")
    assert len(video) == n
    straight = [video.rgb(frame) for frame in video.frames(0, n)]
    for first, stop in ((7, 37), (37, 38), (3, 4), (40, 41), (20, 30), (30, 31), (0, n), (49, 50)):
        np.testing.assert_array_equal([video.rgb(frame) for frame in video.frames(first, stop)], straight[first:stop])
    start = 0
    for k, (file, length) in enumerate(parts):
        assert_greys(np.stack(straight[start : start + length]), k, length)
        part = Video(file)
        assert part.crc32(0, length) == video.crc32(start, start + length)
        part.close()
        start += length
    video.close()


# -- damage ----------------------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 5])


@pytest.mark.parametrize(
    "what", ["data/*/*.parquet", "videos/*/*/*.mp4", "meta/info.json", "meta/tasks.*", "meta/episodes*"]
)
@pytest.mark.parametrize("damage", [cut, lambda file: file.unlink()], ids=["cut", "removed"])
def test_damage_names_the_file(foreign, tmp_path, what, damage):
    file = next(f for f in sorted(foreign.glob(what)))
    file = next(f for f in [file, *sorted(file.rglob("*.parquet"))] if f.is_file())
    damage(file)
    with pytest.raises(ConvertError) as error:
        convert(foreign, tmp_path / "s.zarr")
    assert str(file) in str(error.value) or (not file.exists() and str(file.parents[1]) in str(error.value))
    assert not (tmp_path / "s.zarr").exists()


def contents(root: Path) -> str:
    """All that is read of a data set."""
    recording = open_recording(root)
    try:
        digest = hashlib.sha1(json.dumps(recording.spec.to_dict()).encode())
        for i in range(len(recording.ids)):
            episode = recording.episode(i)
            digest.update(str([getattr(episode, name) for name in SAID]).encode())
            for name, rows in episode.arrays.items():
                digest.update(name.encode() + np.asarray(rows[0 : len(episode)]).tobytes())
        return digest.hexdigest()
    finally:
        recording.close()


@pytest.mark.parametrize(
    "what", ["data/*/*.parquet", "videos/*front/*/*.mp4", "meta/tasks.parquet", "meta/episodes/*/*.parquet"]
)
def test_a_flipped_bit_in_what_we_wrote_is_an_error_or_nothing(ours, tmp_path, what):
    root = convert(ours, tmp_path / "l", "lerobot").path
    whole, file = contents(root), next(f for f in root.glob(what))
    data, errors = file.read_bytes(), 0
    for at in np.linspace(4, len(data) - 1, 16).astype(int):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            assert contents(root) == whole  # what nobody reads
        except ConvertError as error:
            assert str(file) in str(error)
            errors += 1
    assert errors > 3


def test_numbers_that_contradict_each_other(foreign, tmp_path):
    text = (foreign / "meta/info.json").read_text()
    info = json.loads(text)
    for change, message in (
        ({"total_frames": 34}, "info.json: total_frames is 34, but .*episodes.* has 33"),
        ({"total_episodes": 5}, "info.json: total_episodes is 5, but .* has 4"),
        ({"fps": 0}, "info.json: fps is 0"),
        ({"codebase_version": "v1.6"}, "info.json: codebase_version is 'v1.6'"),
        ({"features": []}, "info.json: cannot be understood"),
        ({"data_path": "data/{x}.parquet"}, "info.json: cannot be read .KeyError"),
    ):
        (foreign / "meta/info.json").write_text(json.dumps(info | change))
        with pytest.raises(ConvertError, match=message):
            convert(foreign, tmp_path / "s.zarr")
    for key, shape, message in (
        ("observation.images.top.left", [16, 48, 3], r"\.mp4: .* a frame is 32 x 48; meta/info.json says 16 x 48"),
        ("observation.images.still", [3, 8, 7], r"\.parquet: .* a picture is 8 x 6; meta/info.json says 8 x 7"),
        ("observation.state", [4], r"\.parquet: .* observation.state has rows that are not lists of 4"),
        ("action", [3], r"\.parquet: .* action has rows that are not lists of 3"),
    ):
        changed = json.loads(text)
        changed["features"][key]["shape"] = shape
        (foreign / "meta/info.json").write_text(json.dumps(changed))
        with pytest.raises(DamagedError, match=message):
            convert(foreign, tmp_path / "s.zarr")
    changed = json.loads(text)
    changed["features"]["observation.images.still"]["shape"] = [3, 8, 1 << 30]
    (foreign / "meta/info.json").write_text(json.dumps(changed))
    with pytest.raises(ConvertError, match="expected pictures of 1 to 16384 pixels a side"):
        convert(foreign, tmp_path / "s.zarr")


def test_a_video_with_too_few_frames_is_left_out_where_that_is_asked_for(tmp_path):
    root = write_v2(tmp_path / "foreign")
    h264(root / "videos/chunk-000/observation.images.top.left/episode_000001.mp4", [grey(1, t) for t in range(11)])
    with pytest.raises(DamagedError, match=r"episode_000001.mp4: .* it has 11 frames; expected 12"):
        convert(root, tmp_path / "s.zarr")
    done = convert(root, tmp_path / "s.zarr", options=Options(skip_damaged=True))
    assert done.episodes == 3 and list(done.skipped) == ["episode_000001"]
    assert Store.open(done.path).meta["episode_id"].tolist() == ["episode_000000", "episode_000002", "episode_000003"]
