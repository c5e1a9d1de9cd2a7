"""RLDS: what TensorFlow Datasets would have written is read value for value, and what is damaged is named."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from padpolicy.data.convert import ConvertError, DamagedError, Options, convert, open_recording, rlds
from padpolicy.data.store import Store
from padpolicy.data.validate import validate

REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "real" / "bridge_rlds"
TFDS = "tensorflow_datasets.core.features"


def tensor(*shape, dtype="float32", encoding="none", doc=""):
    dimensions = {"dimensions": [str(n) for n in shape]} if shape else {}
    values = {"shape": dimensions, "dtype": dtype, "encoding": encoding}
    return {"pythonClassName": f"{TFDS}.tensor_feature.Tensor", "tensor": values, "description": doc}


def image(*shape, dtype="uint8", form="png"):
    values = {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encodingFormat": form}
    return {"pythonClassName": f"{TFDS}.image_feature.Image", "image": values}


def table(**features):
    return {"pythonClassName": f"{TFDS}.features_dict.FeaturesDict", "featuresDict": {"features": features}}


TEXT = {"pythonClassName": f"{TFDS}.text_feature.Text", "text": {}}
STEP = {
    "action": tensor(7),
    "reward": tensor(),
    "language_instruction": TEXT,
    "observation": table(state=tensor(3), front=image(6, 8, 3), wrist=image(6, 8, 3)),
}
METADATA = {"file_path": TEXT, "has_front": tensor(dtype="bool"), "has_wrist": tensor(dtype="bool")}


def png(pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def episode(i: int, n: int = 4) -> dict[str, list]:
    """Entries of an Example, a function of `i`; the wrist camera is there in every second episode."""
    rng = np.random.default_rng(i)
    frames = {camera: rng.integers(0, 256, (n, 6, 8, 3), np.uint8) for camera in ("front", "wrist")}
    if i % 2 == 0:
        frames["wrist"][:] = 0
    return {
        "steps/action": rng.normal(size=7 * n).tolist(),
        "steps/reward": [0.0] * (n - 1) + [float(i != 2)],
        "steps/language_instruction": [b"", b"push the cube", b"lift it", *[b""] * (n - 3)],
        "steps/observation/state": rng.normal(size=3 * n).tolist(),
        **{f"steps/observation/{camera}": [png(frame) for frame in pixels] for camera, pixels in frames.items()},
        "episode_metadata/file_path": [f"robot/{i}.npy".encode()],
        "episode_metadata/has_front": [1],
        "episode_metadata/has_wrist": [i % 2],
    }


def record(entries: dict[str, list]) -> bytes:
    example = rlds.example_class()()
    for name, values in entries.items():
        value = example.features.feature.add(key=name).value
        kinds = {bytes: value.bytes_list, float: value.float_list, int: value.int64_list}
        kinds[type(values[0])].value.extend(values)
    data = example.SerializeToString()

    def checksum(of: bytes) -> bytes:
        crc = google_crc32c.value(of)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def write(root: Path, shards=(3, 2), step=STEP, metadata=METADATA, entries=episode, split="train") -> Path:
    """A data set `root`/arm/1.0.0 of two files."""
    folder = root / "arm" / "1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    steps = {"pythonClassName": f"{TFDS}.dataset_feature.Dataset", "sequence": {"feature": table(**step)}}
    (folder / "features.json").write_text(json.dumps(table(steps=steps, episode_metadata=table(**metadata))))
    split_info = {"name": split, "shardLengths": [str(n) for n in shards]}
    (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord", "splits": [split_info]}))
    numbers = iter(range(sum(shards)))
    for i, n in enumerate(shards):
        file = folder / f"arm-{split}.tfrecord-{i:05d}-of-{len(shards):05d}"
        file.write_bytes(b"".join(record(entries(next(numbers))) for _ in range(n)))
    return folder


def shard(folder: Path, i: int = 0) -> Path:
    return sorted(folder.glob("*.tfrecord*"))[i]


@pytest.mark.parametrize(("data", "crc"), [(bytes(32), 0x8A9136AA), (b"123456789", 0xE3069283)])
def test_checksums_are_crc32c_masked(data, crc):
    rotated = (int.from_bytes(rlds._masked_crc(data), "little") - 0xA282EAD8) % 2**32
    assert (rotated >> 17 | rotated << 15) % 2**32 == crc


def test_every_value_arrives(tmp_path):
    write(tmp_path)
    done = convert(tmp_path / "arm", tmp_path / "out.zarr", options=Options(fps=5, action_kind="delta", robot="arm"))
    assert done.format == rlds.NAME and done.episodes == 5 and not done.skipped
    store = Store.open(done.path)
    assert not [f for f in validate(done.path) if f.level == "error"]
    assert list(store.meta["episode_id"]) == [f"train/{i:05d}/{j}" for i, n in enumerate((3, 2)) for j in range(n)]
    assert store.spec.proprio["names"] == ["state_0", "state_1", "state_2"] and store.robot == "arm"
    assert store.action_spec.kind == "delta" and store.action_spec.names == [f"action_{i}" for i in range(7)]
    for i in range(5):
        got, wanted = store.episode(i), episode(i)
        assert (got.task, got.source, got.success) == ("push the cube", f"robot/{i}.npy", True)
        np.testing.assert_array_equal(got.arrays["action"].ravel(), np.float32(wanted["steps/action"]))
        np.testing.assert_array_equal(got.arrays["proprio"].ravel(), np.float32(wanted["steps/observation/state"]))
        np.testing.assert_allclose(got.arrays["timestamp"], np.arange(4) / 5)
        assert ("rgb_wrist" in got.arrays) == bool(i % 2)
        for field in {"rgb_front", "rgb_wrist"} & set(got.arrays):
            pictures = [np.asarray(Image.open(io.BytesIO(p))) for p in wanted[f"steps/observation/{field[4:]}"]]
            np.testing.assert_array_equal(got.arrays[field], pictures)


def test_success_is_a_reward_at_the_end_where_there_are_rewards(tmp_path):
    rewards = {0: [0.0, 0.0, 0.0, 0.0], 1: [0.0, 0.0, 0.0, 1.0], 2: [0.0, 1.0, 0.0, 0.0]}
    write(tmp_path, shards=(3,), entries=lambda i: episode(i) | {"steps/reward": rewards[i]})
    recording = open_recording(tmp_path / "arm", Options(fps=5))
    assert [recording.episode(i).success for i in range(3)] == [True, True, False]


def test_a_camera_that_was_never_there_is_dropped_and_one_whose_flag_lies_is_kept(tmp_path):
    def entries(i):
        never = {"steps/observation/wrist": [png(np.zeros((6, 8, 3), np.uint8))] * 4, "episode_metadata/has_wrist": [0]}
        return episode(i) | never | {"episode_metadata/has_front": [0]}

    write(tmp_path, entries=entries)
    recording = open_recording(tmp_path / "arm", Options(fps=5))
    assert list(recording.spec.cameras) == ["front"] and recording.spec.optional == ["rgb_front"]
    assert "rgb_front" in recording.episode(0).arrays
    text = " ".join(recording.notes.lines)
    assert "steps/observation/wrist is left out: no episode" in text
    assert "steps/observation/front is kept where its flag says that it is absent" in text


def test_the_words_of_an_episode(tmp_path):
    step = {
        **STEP,
        "observation": table(natural_language_instruction=TEXT, **STEP["observation"]["featuresDict"]["features"]),
    }
    texts = {"steps/language_instruction": [b""] * 4, "steps/observation/natural_language_instruction": [b"stack"] * 4}
    nothing = {name: [b""] * 4 for name in texts}
    write(tmp_path, shards=(2,), step=step, entries=lambda i: episode(i) | (texts if i else nothing))
    recording = open_recording(tmp_path / "arm", Options(fps=5, task="wipe"))
    assert [recording.episode(i).task for i in range(2)] == ["wipe", "stack"]
    silent = open_recording(tmp_path / "arm", Options(fps=5))
    assert [silent.episode(i).task for i in range(2)] == ["", "stack"]
    assert "some episodes have no instruction" in " ".join(silent.notes.lines)


def test_actions_in_parts_and_tensors_as_bytes(tmp_path):
    parts = {"world_vector": tensor(3), "open": tensor(dtype="bool")}
    observation = table(
        state=tensor(3),
        pose=tensor(2, dtype="float64", encoding="zlib"),
        mode=tensor(2, dtype="int16", encoding="bytes"),
    )
    step = {"action": table(**parts), "observation": observation}
    pose, mode = np.random.default_rng(0).normal(size=(4, 2)), np.arange(8, dtype=np.int16).reshape(4, 2)
    entries = {
        "steps/action/world_vector": np.arange(12.0).tolist(),
        "steps/action/open": [0, 1, 1, 0],
        "steps/observation/state": [0.0] * 12,
        "steps/observation/pose": [zlib.compress(row.tobytes()) for row in pose],
        "steps/observation/mode": [row.tobytes() for row in mode],
    }
    write(tmp_path, shards=(1,), step=step, metadata={}, entries=lambda i: entries)
    recording = open_recording(tmp_path / "arm", Options(fps=5, proprio=("pose", "mode")))
    got = recording.episode(0).arrays
    assert recording.spec.action.names == ["open", "world_vector_0", "world_vector_1", "world_vector_2"]
    np.testing.assert_array_equal(got["action"], np.c_[[0, 1, 1, 0], np.arange(12).reshape(4, 3)])
    assert recording.spec.proprio["names"] == ["pose_0", "pose_1", "mode_0", "mode_1"]
    np.testing.assert_array_equal(got["proprio"], np.c_[np.float32(pose), mode])


@pytest.mark.parametrize(
    ("doc", "named"),
    [
        ("Robot action: [x, y, z, roll, pitch, yaw, gripper].", True),
        ("[3x position, 3x rotation (roll, pitch, yaw), 1x gripper]", False),
        ("gripper first, then x y z roll pitch yaw", False),
    ],
)
def test_actions_are_named_as_they_are_described(tmp_path, doc, named):
    write(tmp_path, shards=(1,), step={**STEP, "action": tensor(7, doc=doc)})
    spec = open_recording(tmp_path / "arm", Options(fps=5, action_kind="delta")).spec.action
    assert (spec.names[0], spec.gripper) == (("x", "continuous") if named else ("action_0", "none"))


def test_depth_is_read_where_it_is_uint16_and_of_a_camera(tmp_path):
    depth = np.random.default_rng(0).integers(0, 65536, (4, 6, 8), np.uint16)
    observation = {
        "front": image(6, 8, 3),
        "front_depth": image(6, 8, 1, dtype="uint16"),
        "wrist_depth": image(6, 8, 1, dtype="uint16"),
        "metric_depth": tensor(6, 8),
    }
    entries = {"steps/action": [0.0] * 28, "steps/observation/metric_depth": [0.0] * 4 * 48}
    entries |= {f"steps/observation/{name}_depth": [png(frame) for frame in depth] for name in ("front", "wrist")}
    entries |= {"steps/observation/front": episode(0)["steps/observation/front"]}
    step = {"action": tensor(7), "observation": table(**observation)}
    write(tmp_path, shards=(1,), step=step, metadata={}, entries=lambda i: entries)
    done = convert(tmp_path / "arm", tmp_path / "out.zarr", options=Options(fps=5))
    store = Store.open(done.path)
    assert sorted(store.fields) == ["action", "depth_front", "rgb_front"]
    np.testing.assert_array_equal(store.episode(0).arrays["depth_front"], depth)
    text = " ".join(done.notes)
    assert "left out: steps/observation/metric_depth, steps/observation/wrist_depth." in text
    assert "front_depth is taken as the depth of front in millimetres" in text and "no proprioception" in text


def test_pictures_of_different_sizes_need_a_size(tmp_path):
    step = {**STEP, "observation": table(front=image(-1, -1, 3, form="jpeg"))}

    def entries(i):
        pictures = [png(np.full((6 + 2 * i, 8, 3), 200, np.uint8))] * 4
        return {k: v for k, v in episode(i).items() if "observation" not in k} | {"steps/observation/front": pictures}

    write(tmp_path, shards=(2,), step=step, entries=entries)
    with pytest.raises(DamagedError, match=r"front .*8 x 8 pixels, expected 6 x 8; --image-size"):
        convert(tmp_path / "arm", tmp_path / "out.zarr", options=Options(fps=5))
    convert(tmp_path / "arm", tmp_path / "square.zarr", options=Options(fps=5, image_size=16))
    store = Store.open(tmp_path / "square.zarr")
    assert store.array("rgb_front").shape == (8, 16, 16, 3)
    assert (store.episode(0).arrays["rgb_front"][:, :2] == 0).all() and store.episode(1).arrays[
        "rgb_front"
    ].min() == 200


def test_only_some_cameras(tmp_path):
    write(tmp_path)
    assert list(open_recording(tmp_path / "arm", Options(fps=5, cameras=("wrist",))).spec.cameras) == ["wrist"]
    with pytest.raises(ConvertError, match="there is no camera 'top'; there are front, wrist"):
        open_recording(tmp_path / "arm", Options(fps=5, cameras=("top",)))


def cut(folder):
    shard(folder).write_bytes(shard(folder).read_bytes()[:-100])


def flip_in(at):
    def flip(folder):
        data = bytearray(shard(folder).read_bytes())
        data[at] ^= 4
        shard(folder).write_bytes(data)

    return flip


@pytest.mark.parametrize(
    ("damage", "lost", "message"),
    [
        (cut, [2], r"00000-of-00002: record 2 is not there: it ends inside record 2, at byte \d+ of \d+"),
        (flip_in(3), [0, 1, 2], "record 0 is not there: the length of record 0, at byte 0, fails its checksum"),
        (flip_in(300), [0], "record 0 cannot be read: it fails its checksum"),
        (
            lambda folder: shard(folder, 1).unlink(),
            [3, 4],
            "00001-of-00002: record 0 is not there: the file is missing",
        ),
    ],
)
def test_damage_costs_only_what_it_hits(tmp_path, damage, lost, message):
    damage(write(tmp_path))
    with pytest.raises(DamagedError, match=message):
        convert(tmp_path / "arm", tmp_path / "out.zarr", options=Options(fps=5))
    assert not (tmp_path / "out.zarr").exists()
    done = convert(tmp_path / "arm", tmp_path / "out.zarr", options=Options(fps=5, skip_damaged=True))
    ids = [f"train/{i:05d}/{j}" for i, n in enumerate((3, 2)) for j in range(n)]
    assert sorted(done.skipped) == [ids[i] for i in lost]
    store = Store.open(done.path)
    for name, got in ((str(name), store.episode(i)) for i, name in enumerate(store.meta["episode_id"])):
        expected = np.float32(episode(ids.index(name))["steps/action"])
        np.testing.assert_array_equal(got.arrays["action"].ravel(), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps/action": [0.0] * 21}, "same number of steps in all its entries"),
        ({"steps/action": [0.0] * 27 + [float("nan")]}, "NaN or infinity in steps/action at step 3"),
        ({"steps/observation/front": [b"no picture"] * 4}, r"front with a picture that cannot be used, 0 \("),
        ({"steps/reward": None}, "lacks steps/reward, which features.json has"),
        ({"steps/observation/state": [b"x"] * 12}, "steps/observation/state, which does not fit features.json"),
    ],
)
def test_episodes_that_do_not_fit_their_description_are_named(tmp_path, change, message):
    def entries(i):
        changed = episode(i) | (change if i == 1 else {})
        return {name: values for name, values in changed.items() if values is not None}

    write(tmp_path, entries=entries)
    with pytest.raises(DamagedError, match=f"episode train/00000/1: .*record 1 .*{message}"):
        convert(tmp_path / "arm", tmp_path / "out.zarr", options=Options(fps=5))


def test_a_bad_data_set_says_what_is_wrong(tmp_path):
    folder = write(tmp_path)
    info, features = folder / "dataset_info.json", folder / "features.json"
    said = {file: file.read_text() for file in (info, features)}
    for file, text, message in (
        (info, said[info].replace('"3"', '"2"'), "more records than the 2 that dataset_info.json says"),
        (info, said[info].replace("train", "test"), "knows no split 'train'"),
        (info, said[info].replace('"tfrecord"', '"riegeli"'), "fileFormat is 'riegeli'; only tfrecord is read"),
        (info, said[info].replace('"3"', '"99999999999"'), "shardLengths beyond"),
        (info, said[info].replace('"3", ', ""), "should have 1 files; those that are there are named -of-00002"),
        (features, "{", "features.json: cannot be read"),
        (features, "[]", "expected a JSON object, got list"),
        (
            features,
            said[features].replace('"sequence"', '"seqence"'),
            "features.json: expected the features of an RLDS",
        ),
        (features, said[features].replace('"front"', '"../front"'), "a camera '.._front'; expected letters"),
    ):
        file.write_text(text)
        with pytest.raises(ConvertError, match=message):
            open_recording(tmp_path / "arm", Options(fps=5))
        file.write_text(said[file])
    with pytest.raises(ConvertError, match="Give --fps"):
        open_recording(tmp_path / "arm")
    with pytest.raises(ConvertError, match="--proprio joints: no such numbers; there are state"):
        open_recording(tmp_path / "arm", Options(fps=5, proprio=("joints",)))
    features.unlink()
    with pytest.raises(ConvertError, match="features.json: cannot be read"):
        open_recording(tmp_path / "arm", Options(fps=5))


def test_without_dataset_info_the_files_names_say_how_many_there_are(tmp_path):
    folder = write(tmp_path)
    (folder / "dataset_info.json").unlink()
    assert len(open_recording(folder, Options(fps=5)).ids) == 5
    shard(folder, 1).unlink()
    recording = open_recording(folder, Options(fps=5))
    assert recording.ids[3:] == ["train/00001/0"]
    with pytest.raises(DamagedError, match="the file is missing"):
        recording.episode(3)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real recordings are not beside the repository")
def test_real_recordings(tmp_path):
    done = convert(REAL, tmp_path / "out.zarr", options=Options(fps=5))
    store = Store.open(done.path)
    assert store.n_episodes == 25 and store.n_rows == 250 and len(store.tasks) == 4
    assert store.spec.action.kind == "unknown" and store.spec.action.names[6] == "action_6"
    assert list(store.cameras) == ["image_0", "image_1", "image_2"]  # image_3 is black in all of them
    assert store.episode(0).task == "put cup from counter or drying rack into sink"
    assert all(store.episode(4).arrays[f"rgb_{camera}"].std() > 20 for camera in store.cameras)
    assert not [f for f in validate(done.path) if f.level == "error"]
