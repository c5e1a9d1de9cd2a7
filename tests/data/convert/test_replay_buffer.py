"""ReplayBuffer zarr: stores of format 2 as diffusion_policy lays them out, and our own there and back."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from padpolicy.data.actions import ActionSpec
from padpolicy.data.convert import ConvertError, DamagedError, Options, convert, open_recording
from padpolicy.data.convert import replay_buffer as format
from padpolicy.data.layout import StoreError
from padpolicy.data.letterbox import letterbox
from padpolicy.data.store import Episode, Store, StoreSpec

ENDS, T = [4, 9, 11], 11
ACTION_SPEC = ActionSpec("delta", ["x", "y", "gripper"], 0.1, gripper="continuous", units=["m", "m", "1"])
RNG = np.random.default_rng(0)
IMG = RNG.integers(0, 256, (T, 6, 8, 3), np.uint8)
STATE = RNG.normal(size=(T, 5)).astype(np.float32)
ACTION = RNG.uniform(0, 512, (T, 2)).astype(np.float32)
PUSH = Options(fps=10, task="push the T")
LZ4, ZSTD = numcodecs.Blosc("lz4", 5, 0), numcodecs.Blosc("zstd", 5, 2)


def write(path: Path, chunk: int = 3, compressor: Any = LZ4, ends: Any = ENDS, chunks: Any = None, **data: Any) -> Path:
    """A store as a ReplayBuffer is, with `data`, or else pictures, states and actions; a zip if that is its name."""
    folder = path.with_suffix("") if path.suffix == ".zip" else path
    group = zarr.create_group(folder, zarr_format=2)
    data = data or {"img": IMG, "state": STATE, "action": ACTION}
    arrays = {f"data/{key}": np.asarray(values) for key, values in data.items()} | {"meta/episode_ends": np.array(ends)}
    for key, values in arrays.items():
        shape = chunks if chunks and values.ndim == len(chunks) else (chunk, *values.shape[1:])
        array = group.create_array(key, shape=values.shape, dtype=values.dtype, chunks=shape, compressors=compressor)
        array.with_config({"write_empty_chunks": True})[:] = values
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for member in sorted(folder.rglob("*")):
                if member.is_file():
                    file.write(member, member.relative_to(folder).as_posix())
        shutil.rmtree(folder)
    return path


def rows(path: Path, name: str, options: Options = PUSH) -> np.ndarray:
    """All rows of one of our arrays, episode by episode."""
    recording = open_recording(path, options)
    try:
        return np.concatenate([recording.episode(i).arrays[name][:] for i in range(len(recording.ids))])
    finally:
        recording.close()


def same(path: Path, copy: Path, build: Any) -> None:
    a, b = Store.open(path), Store.open(copy)
    assert a.spec == b.spec and a.n_episodes == b.n_episodes
    for i in range(a.n_episodes):
        build.assert_same(b.episode(i), a.episode(i))


# -- stores of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["push.zarr", "push.zarr.zip"])
@pytest.mark.parametrize(
    "compressor", [LZ4, ZSTD, numcodecs.Blosc(), None, numcodecs.Zlib(), numcodecs.Zstd()], ids=str
)
def test_what_is_in_the_store_is_read(tmp_path, name, compressor):
    recording = open_recording(write(tmp_path / name, compressor=compressor), PUSH)
    assert recording.ids == ["episode-000000", "episode-000001", "episode-000002"]
    assert recording.spec.cameras == {"img": {"size": [6, 8], "intrinsics": None, "extrinsics": None}}
    assert recording.spec.action == ActionSpec("unknown", ["action_0", "action_1"], 0.1)
    assert recording.spec.proprio["names"] == [f"state_{i}" for i in range(5)]
    for i, (start, stop) in enumerate(zip([0, *ENDS], ENDS, strict=False)):
        episode = recording.episode(i)
        assert (len(episode), episode.task, episode.success) == (stop - start, "push the T", True)
        for ours, values in (("rgb_img", IMG), ("proprio", STATE), ("action", ACTION)):
            np.testing.assert_array_equal(episode.arrays[ours][:], values[start:stop])
            np.testing.assert_array_equal(episode.arrays[ours][1:3], values[start + 1 : min(start + 3, stop)])
    recording.close()


def test_it_becomes_a_store_of_ours(tmp_path):
    done = convert(
        write(tmp_path / "push.zarr"), tmp_path / "ours.zarr", options=Options(10, "push", "absolute", "xarm")
    )
    store = Store.open(done.path)
    assert (store.robot, store.action_spec.kind, store.n_rows) == ("xarm", "absolute", T)
    np.testing.assert_array_equal(store.read("rgb_img", 0, T), IMG)


@pytest.mark.parametrize(
    ("stored", "chunks"),
    [
        (IMG.astype(np.float32), None),
        (IMG.astype(">f8"), None),
        (IMG.astype(np.float16), None),
        (IMG / 255, None),
        ((IMG / 255).astype(np.float16), None),
        (IMG.transpose(0, 3, 1, 2), None),
        ((IMG / np.float32(255)).transpose(0, 3, 1, 2), (T, 3, 6, 8)),
        (IMG, (2, 4, 5, 2)),
        (IMG, (100, 6, 8, 3)),
    ],
)
def test_pictures_of_any_type_order_and_chunks(tmp_path, stored, chunks):
    path = write(tmp_path / "push.zarr", chunks=chunks, img=stored, action=ACTION)
    np.testing.assert_array_equal(rows(path, "rgb_img"), IMG)
    if stored.dtype.kind == "f":
        recording = open_recording(path, PUSH)
        assert any(f"taken as 0..{255 if stored.max() > 1.5 else 1}" in note for note in recording.notes.lines)


def test_pictures_in_another_range_than_the_sample_are_an_error(tmp_path):
    dark = np.zeros((40, 2, 2, 3), np.float32)
    dark[10] = 200
    path = write(tmp_path / "dark.zarr", chunk=1, ends=[40], img=dark)
    with pytest.raises(DamagedError, match=r"data/img: rows 0..39 have values from 0 to 200; .* was in 0..1"):
        rows(path, "rgb_img")
    dark[10] = np.nan
    with pytest.raises(DamagedError, match="have values from nan to nan"):
        rows(write(tmp_path / "nan.zarr", chunk=1, ends=[40], img=dark), "rgb_img")


def test_cameras_and_what_else_becomes_what(tmp_path):
    pictures = {key: IMG for key in ("rgb_front", "agentview_image", "wrist_rgb", "camera_0", "top_image", "top_rgb")}
    others = {"depth_front": IMG[..., 0].astype(np.uint16), "depth_camera_0": IMG[..., 0].astype(np.float32)}
    others |= {
        "robot0_eef_pos": STATE[:, :3],
        "robot_joint": STATE,
        "agent_pos": STATE[:, 0],
        "n_contacts": STATE[:, :1],
    }
    path = write(
        tmp_path / "many.zarr", keypoint=STATE[:, :4].reshape(T, 2, 2), stage=np.arange(T), **pictures, **others
    )
    recording = open_recording(path, PUSH)
    assert sorted(recording.spec.cameras) == ["agentview", "camera_0", "front", "top_image", "top_rgb", "wrist"]
    assert recording.spec.depth_cameras == ["front"] and recording.spec.action is None
    names = ["agent_pos_0", *(f"robot0_eef_pos_{i}" for i in range(3)), *(f"robot_joint_{i}" for i in range(5))]
    assert recording.spec.proprio["names"] == names
    np.testing.assert_array_equal(rows(path, "proprio"), np.column_stack([STATE[:, 0], STATE[:, :3], STATE]))
    np.testing.assert_array_equal(rows(path, "depth_front"), others["depth_front"])
    left = next(note for note in recording.notes.lines if note.startswith("left out"))
    assert [part.split()[0] for part in left.removeprefix("left out: ").split("; ")] == [
        "data/depth_camera_0",
        "data/keypoint",
        "data/n_contacts",
        "data/stage",
    ]


def test_options_choose(tmp_path):
    path = write(tmp_path / "s.zarr", img=IMG, rgb_top=IMG, action=ACTION, one=STATE, two=STATE[:, :2])
    chosen = Options(10, "push", cameras=("top",), proprio=("two", "one"), image_size=4)
    recording = open_recording(path, chosen)
    assert list(recording.spec.cameras) == ["top"] and recording.spec.cameras["top"]["size"] == [4, 4]
    np.testing.assert_array_equal(rows(path, "proprio", chosen), np.concatenate([STATE[:, :2], STATE], 1))
    np.testing.assert_array_equal(rows(path, "rgb_top", chosen), letterbox(IMG, 4))
    assert open_recording(path, PUSH).spec.proprio is None  # two could be meant
    assert open_recording(write(tmp_path / "t.zarr", low=STATE, img=IMG), PUSH).spec.proprio["names"][0] == "low_0"
    for wrong, message in (
        (Options(task="push"), "Give --fps"),
        (Options(fps=10), "Give --task"),
        (Options(10, "push", cameras=("wrist",)), "no camera 'wrist'; there are img, top"),
        (Options(10, "push", proprio=("three",)), r"--proprio three: the arrays of floats \(T, P\) are one, two"),
        (Options(10, "push", filter_key="train"), "leave --filter-key out"),
    ):
        with pytest.raises(ConvertError, match=message):
            open_recording(path, wrong)


def test_a_recording_of_a_real_robot_has_times(tmp_path):
    time_s = 1.67e9 + np.array([0, 0.1, 0.2, 0.3, 70, 70.1, 70.2, 70.3, 70.5, 90, 90.1])
    path = write(tmp_path / "s.zarr", timestamp=time_s, action=STATE.astype(np.float64), robot_joint=STATE)
    recording = open_recording(path, Options(task="push"))
    assert recording.spec.dt_s == recording.spec.action.dt_s == 0.1 and not recording.spec.cameras
    np.testing.assert_array_equal(rows(path, "timestamp", Options(task="push")), time_s)
    assert open_recording(path, PUSH).spec.dt_s == 0.1 and open_recording(path, Options(5, "push")).spec.dt_s == 0.2
    time_s[6] = time_s[5]
    with pytest.raises(DamagedError, match=r"data/timestamp: times of rows 4..8 do not increase"):
        rows(write(tmp_path / "t.zarr", timestamp=time_s, action=STATE), "action")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def flip_length(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[13] ^= 16  # of the bytes that the frame has
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "error", "message"),
    [
        ("data/img/1.0.0.0", Path.unlink, DamagedError, "data/img/1.0.0.0 cannot be read: the file is missing"),
        (
            "data/img/1.0.0.0",
            lambda f: f.write_bytes(f.read_bytes()[:-9]),
            DamagedError,
            r"1.0.0.0 cannot be read: its header",
        ),
        ("data/action/2.0", flip_length, DamagedError, "data/action/2.0 cannot be read: its header says"),
        ("data/action/2.0", lambda f: f.write_bytes(b""), DamagedError, "data/action/2.0 cannot be read"),
        (
            "data/action/2.0",
            lambda f: f.write_bytes(bytes(10**5)),
            DamagedError,
            "more than the .* bytes that it may have",
        ),
        ("meta/episode_ends/0", Path.unlink, ConvertError, "meta/episode_ends/0 cannot be read: the file is missing"),
        ("data/img/.zarray", Path.unlink, ConvertError, "data/img/.zarray cannot be read"),
        ("data/img/.zarray", lambda f: f.write_text("{"), ConvertError, "data/img/.zarray cannot be read"),
        ("data/img/.zarray", lambda f: edit(f, chunks=[0, 6, 8, 3]), ConvertError, "zarr format 2 cannot have"),
        ("data/img/.zarray", lambda f: edit(f, chunks=[10**9, 6, 8, 3]), ConvertError, "more than 2 GB"),
        (
            "data/img/.zarray",
            lambda f: edit(f, shape=[12, 6, 8, 3]),
            ConvertError,
            "has 12 rows; meta/episode_ends says 11",
        ),
        ("data/img/.zarray", lambda f: edit(f, filters=[{"id": "delta"}]), ConvertError, "padpolicy reads none"),
        (
            "data/img/.zarray",
            lambda f: edit(f, compressor={"id": "pickle"}),
            ConvertError,
            "expected none, imagecodecs' or",
        ),
        ("data/action/.zarray", lambda f: edit(f, dtype="<i4"), ConvertError, r"int32; expected floats \(T, A\)"),
        (".zattrs", lambda f: f.write_text('{"padpolicy": {}}'), ConvertError, ".zattrs: 'crc32c'"),
    ],
)
def test_damage_is_an_error_that_names_the_file(tmp_path, file, damage, error, message):
    path = write(tmp_path / "s.zarr")
    damage(path / file)
    with pytest.raises(error, match=message):
        convert(path, tmp_path / "ours.zarr", options=PUSH)
    assert not (tmp_path / "ours.zarr").exists()


def test_a_damaged_episode_can_be_left_out(tmp_path):
    path = write(tmp_path / "s.zarr")
    (path / "data" / "action" / "0.0").unlink()
    done = convert(path, tmp_path / "ours.zarr", options=Options(10, "push", skip_damaged=True))
    assert list(done.skipped) == ["episode-000000"]
    np.testing.assert_array_equal(Store.open(done.path).read("action", 0, T - 4), ACTION[4:])


def test_a_damaged_zip_is_an_error(tmp_path):
    path = write(tmp_path / "s.zarr.zip", compressor=None)
    whole = path.read_bytes()
    data = bytearray(whole)
    data[whole.index(ACTION.tobytes()[:16]) + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"s.zarr.zip/data/action/0.0 cannot be read: Bad CRC-32"):
        rows(path, "action")
    path.write_bytes(whole[:-30])
    with pytest.raises(ConvertError, match=r"s.zarr.zip cannot be opened as a zip"):
        open_recording(path, PUSH)


@pytest.mark.parametrize(
    ("ends", "message"), [([4, 4, T], "episode 1 ends at row 4, the one before at 4"), ([4, 12], "12")]
)
def test_episode_ends_must_increase_up_to_the_last_row(tmp_path, ends, message):
    with pytest.raises(ConvertError, match=message):
        open_recording(write(tmp_path / "s.zarr", ends=ends), PUSH)


def test_nan_is_told_with_its_row(tmp_path):
    action = ACTION.copy()
    action[6, 1] = np.nan
    with pytest.raises(DamagedError, match="data/action is NaN or infinite at row 6"):
        rows(write(tmp_path / "s.zarr", action=action), "action")


def test_pictures_that_need_imagecodecs_say_so(tmp_path, monkeypatch):
    path = write(tmp_path / "s.zarr")
    edit(path / "data" / "img" / ".zarray", compressor={"id": "imagecodecs_jpeg2k", "level": 50})
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(
        ConvertError, match="compressed with imagecodecs_jpeg2k, which needs imagecodecs: pip install imagecodecs"
    ):
        open_recording(path, PUSH)


def test_other_things_are_not_recognised(tmp_path, new_store):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme.txt", "nothing")
    (tmp_path / "text.zip").write_text("no zip")
    for path in (tmp_path, tmp_path / "other.zip", tmp_path / "text.zip", new_store(1)):
        assert not format.recognises(path)
    assert format.recognises(write(tmp_path / "renamed.zip"))


# -- ours, there and back ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that has all that a ReplayBuffer cannot say, and what became of it."""
    folder, rng, episodes = tmp_path_factory.mktemp("made"), np.random.default_rng(1), []
    camera = {"size": [6, 8], "intrinsics": np.eye(3).tolist(), "extrinsics": None}
    proprio = {"names": ["x", "y", "z"], "unit": "m", "frame": "base"}
    spec = StoreSpec(
        {"front": camera, "wrist": camera}, ["front"], proprio, ACTION_SPEC, robot="arm", renderer="rays", dt_s=0.1
    )
    spec.executed, spec.optional, spec.extra = True, ["rgb_wrist"], {"note": [1, 2.5]}
    spec.tasks = [{"name": "push", "paraphrases": ["push it", "shove it"], "held_out": True}]
    for i, n in enumerate((5, 9, 3, 6)):
        arrays = {f"rgb_{name}": rng.integers(0, 256, (n, 6, 8, 3), np.uint8) for name in spec.cameras}
        arrays |= {"depth_front": rng.integers(0, 999, (n, 6, 8), np.uint16), "timestamp": i + np.arange(n) ** 1.1}
        arrays |= {name: rng.normal(size=(n, 3)).astype(np.float32) for name in ("proprio", "action", "executed")}
        if i == 1:
            del arrays["rgb_wrist"]
        episodes.append(Episode(arrays, ("push", "", "lift")[i % 3], bool(i % 2), i - 1, f"person {i}", f"e{i}"))
    with Store.create(folder / "ours.zarr", spec) as store:
        for episode in episodes:
            store.append(episode)
    convert(folder / "ours.zarr", folder / "theirs.zarr", "replay_buffer")
    return folder


@pytest.fixture
def ours(made: Path) -> Path:
    return made / "ours.zarr"


@pytest.fixture
def theirs(made: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(made / "theirs.zarr", tmp_path / "theirs.zarr"))


@pytest.mark.parametrize("zipped", [False, True])
def test_there_and_back_is_the_same(ours, theirs, tmp_path, build, zipped):
    if zipped:
        theirs = Path(shutil.make_archive(str(theirs), "zip", theirs))
    convert(theirs, tmp_path / "back.zarr")
    same(ours, tmp_path / "back.zarr", build)
    assert Store.open(tmp_path / "back.zarr").has("rgb_wrist", 1) is False


def test_what_is_written_is_what_diffusion_policy_reads(ours, theirs):
    store = Store.open(ours)
    group = zarr.open_group(theirs, mode="r", zarr_format=2)
    ends = group["meta/episode_ends"]
    assert ends.dtype == np.int64 and ends[:].tolist() == store.episode_ends.tolist()
    assert sorted(group["data"].array_keys()) == sorted([*store.fields, "timestamp"])
    for name in ("rgb_front", "action"):
        np.testing.assert_array_equal(group[f"data/{name}"][:], store.read(name, 0, store.n_rows))
    meta = json.loads((theirs / "data" / "rgb_front" / ".zarray").read_text())
    assert meta == {
        "zarr_format": 2,
        "shape": [store.n_rows, 6, 8, 3],
        "chunks": [13888, 6, 8, 3],
        "dtype": "|u1",
        "compressor": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2, "blocksize": 0},
        "filters": None,
        "fill_value": 0,
        "order": "C",
        "dimension_separator": ".",
    }
    files = {file.relative_to(theirs).as_posix() for file in theirs.rglob("*") if file.is_file()}
    assert {".zgroup", "data/.zgroup", "meta/.zgroup", "data/rgb_front/0.0.0.0"} <= files
    assert not any("zarr.json" in file or "jsonl" in file or "partial" in file for file in files)


@pytest.mark.parametrize("died", ["_write", "append", "finish"])
def test_interrupted_anywhere_it_goes_on(ours, tmp_path, build, monkeypatch, died):
    def die_late(writer, *args):
        calls.append(args)
        if len(calls) == {"_write": 18, "append": 3, "finish": 1}[died]:
            if died == "finish":
                original(writer, *args)  # and then the rename did not come
            raise KeyboardInterrupt
        return original(writer, *args)

    calls: list[Any] = []
    original = getattr(format.ReplayBufferWriter, died)
    with monkeypatch.context() as patch:
        patch.setattr(format.ReplayBufferWriter, died, die_late)
        with pytest.raises(KeyboardInterrupt):
            convert(ours, tmp_path / "theirs.zarr", "replay_buffer")
    assert not (tmp_path / "theirs.zarr").exists()
    if died == "append":  # a line of which only a part was written
        with open(tmp_path / ".theirs.zarr.converting" / "data" / "episodes.jsonl", "a") as stream:
            stream.write('{"id": "e2", "st')
    progress: list[Any] = []
    convert(ours, tmp_path / "theirs.zarr", "replay_buffer", progress=lambda *done: progress.append(done))
    assert len(progress) == 4
    convert(tmp_path / "theirs.zarr", tmp_path / "back.zarr")
    same(ours, tmp_path / "back.zarr", build)


def test_an_episode_that_cannot_be_read_leaves_no_trace(ours, tmp_path, build):
    source = shutil.copytree(ours, tmp_path / "ours.zarr")
    with Store.open(source, "a") as store:
        action = store.group["data/action"]
        long = store.episode(3)
        long.arrays = {name: np.repeat(values, 4000, 0) for name, values in long.arrays.items()}
        long.arrays["timestamp"], long.id = np.arange(24000.0), "long"
        store.append(long)
        last = store.episode(0)
        last.id = "last"
        store.append(last)
    next(iter(source.glob("data/action/c.4.*"))).write_bytes(b"")
    assert 5 * action.chunks[0] < 24000
    with pytest.raises(DamagedError, match="episode long: data/action"):
        convert(source, tmp_path / "theirs.zarr", "replay_buffer")
    done = convert(source, tmp_path / "theirs.zarr", "replay_buffer", Options(skip_damaged=True))
    assert list(done.skipped) == ["long"] and done.episodes == 5
    recording = open_recording(done.path)
    for i in range(5):
        episode, expected = recording.episode(i), last if i == 4 else store.episode(i)
        episode.arrays = {name: values[:] for name, values in episode.arrays.items()}
        build.assert_same(episode, expected)


def test_what_others_changed_is_an_error(theirs):
    group = zarr.open_group(theirs, mode="r+", zarr_format=2)
    group["data/action"][7, 0] += 1
    with pytest.raises(DamagedError, match="data/action: rows .* are not those that were written"):
        rows(theirs, "action", Options())
    group["meta/episode_ends"][0] += 1
    with pytest.raises(ConvertError, match="it has other episodes than meta/episode_ends"):
        open_recording(theirs)
    said = (theirs / ".zattrs").read_text()
    (theirs / ".zattrs").write_text(said.replace("shove it", "leave it", 1))
    with pytest.raises(ConvertError, match="what padpolicy wrote is damaged"):
        open_recording(theirs)
    (theirs / ".zattrs").unlink()
    with pytest.raises(ConvertError, match="Give --task"):  # like one of another program
        open_recording(theirs)


def test_ours_says_itself_what_options_would(theirs):
    with pytest.raises(ConvertError, match="says itself what --fps would"):
        open_recording(theirs, Options(fps=10))
    recording = open_recording(theirs, Options(cameras=("wrist",), robot="another"))
    assert sorted(recording.episode(0).arrays) == ["action", "executed", "proprio", "rgb_wrist", "timestamp"]
    assert "rgb_wrist" not in recording.episode(1).arrays and recording.spec.robot == "another"
    assert open_recording(theirs, Options(cameras=("front",))).spec.optional == []
    shutil.rmtree(theirs / "data" / "rgb_wrist")
    with pytest.raises(ConvertError, match="data/rgb_wrist is missing; padpolicy wrote rows of"):
        open_recording(theirs)


def test_an_episode_that_does_not_fit_is_refused(tmp_path):
    spec = StoreSpec({}, action=ActionSpec("delta", ["x", "y"], 0.1), dt_s=0.1)
    writer = format.create(tmp_path / "s.zarr", spec, 2)
    good = np.ones((3, 2), np.float32)
    for arrays, message in (
        ({"action": good[:, :1]}, r"action is float32 \(3, 1\); expected float32 \(3, 2\)"),
        ({"action": good, "rgb_top": IMG}, r"unknown arrays \['rgb_top'\]"),
        ({"timestamp": np.arange(3.0)}, r"missing arrays \['action'\]"),
        ({"action": good * np.nan}, "action is NaN or infinite"),
    ):
        with pytest.raises(StoreError, match=f"append of bad: {message}"):
            writer.append(Episode(arrays, id="bad"))
    writer.append(Episode({"action": good}, id="good"))
    writer.finish()
    assert writer.done == {"good"}
    np.testing.assert_array_equal(rows(tmp_path / "s.zarr", "action", Options()), good)
    np.testing.assert_allclose(rows(tmp_path / "s.zarr", "timestamp", Options()), [0, 0.1, 0.2])
