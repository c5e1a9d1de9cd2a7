"""Every planted fault is found, and its message says where it is."""

import json

import numpy as np
import pytest
import zarr

from padpolicy.data.store import Store, StoreError
from padpolicy.data.validate import validate


def errors(path) -> list[str]:
    return [f"{f.where}: {f.message}" for f in validate(path) if f.level == "error"]


def edit_attrs(path, change) -> None:
    document = json.loads((path / "zarr.json").read_text())
    change(document["attributes"])
    (path / "zarr.json").write_text(json.dumps(document))


def chunk_file(path, name: str, chunk: int = 0):
    array = zarr.open_group(path, mode="r")[name]
    return path / name / array.metadata.encode_chunk_key((chunk, *[0] * (array.ndim - 1)))


def test_a_good_store_has_no_findings(new_store):
    assert validate(new_store(5)) == []


def test_format_2_says_that_it_has_no_checksums(new_store):
    assert [f.level for f in validate(new_store(3, zarr_format=2))] == ["info"]


@pytest.mark.parametrize("name", ["action", "proprio"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf(new_store, name, value):
    path = new_store(3, length=10)
    zarr.open_group(path)[f"data/{name}"][14, 2] = value
    (message,) = errors(path)
    assert message == f"data/{name}, episode 1, step 4: dimension 2 is {value}. Drop or repair the episode."


def test_episode_ends_not_increasing(new_store):
    path = new_store(4, length=10)
    zarr.open_group(path)["meta/episode_ends"][2] = 20
    (message,) = errors(path)
    assert message.startswith(
        "meta/episode_ends: not increasing at episode 2: its end is 20, and the one before ends at 20"
    )
    for mode in ("r", "a", "a"):  # a failed attempt to append gives the lock back
        with pytest.raises(StoreError, match="not increasing at episode 2"):
            Store.open(path, mode)


@pytest.mark.parametrize("name", ["data/action", "data/rgb_front", "data/timestamp", "meta/episode_task"])
def test_an_array_too_short(new_store, name):
    path = new_store(3, length=10)
    array = zarr.open_group(path)[name]
    array.resize((array.shape[0] - 1, *array.shape[1:]))
    assert any(m.startswith(f"{name}: it has {array.shape[0]}") and "too short" in m for m in errors(path))
    with pytest.raises(StoreError, match="too short"):
        Store.open(path)


def test_a_missing_camera(new_store):
    path = new_store(2)
    edit_attrs(path, lambda attrs: attrs["fields"].pop("rgb_wrist"))
    assert errors(path)[0].startswith("cameras/wrist: camera 'wrist' is declared but has neither rgb nor depth")


def test_a_missing_array(new_store):
    path = new_store(2)
    (path / "data/proprio/zarr.json").unlink()
    assert errors(path) == ["data/proprio: the array is missing. Restore it, or record the data again."]
    with pytest.raises(StoreError, match="proprio"):
        Store.open(path)


META = ["meta/episode_ends", "meta/episode_task", "meta/episode_id"]


@pytest.mark.parametrize("name", ["data/rgb_front", "data/depth_front", "data/action", "data/timestamp", *META])
def test_a_flipped_bit_anywhere(new_store, name):
    path = new_store(3, length=10)
    file, rng = chunk_file(path, name), np.random.default_rng(0)
    good = file.read_bytes()
    for _ in range(5):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        file.write_bytes(bad)
        assert any(message.startswith(name) for message in errors(path))
        if name in META:
            with pytest.raises(StoreError, match=f"episodes 0..2 of {name} cannot be read: .*Restore {file}"):
                Store.open(path)


def test_a_flipped_bit_says_where_and_which_file(new_store):
    path = new_store(3, length=200)
    chunks = zarr.open_group(path, mode="r")["data/rgb_front"].chunks[0]
    file = chunk_file(path, "data/rgb_front", 1)
    data = bytearray(file.read_bytes())
    data[100] ^= 4
    file.write_bytes(data)
    (message,) = errors(path)
    episode, step = divmod(chunks, 200)
    assert message.startswith(f"data/rgb_front, episode {episode}, step {step}: ")
    assert "checksum" in message and str(file) in message
    store = Store.open(path)
    with pytest.raises(StoreError, match=f"episode {episode}, step {step}"):
        store.read("rgb_front", chunks, chunks + 1)
    store.read("rgb_front", 0, chunks)  # the others can still be read


@pytest.mark.parametrize("keep", [0, 10])
def test_a_truncated_chunk(new_store, keep):
    path = new_store(3)
    file = chunk_file(path, "data/rgb_front")
    file.write_bytes(file.read_bytes()[:keep])
    assert "data/rgb_front, episode 0, step 0" in errors(path)[0]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["data/depth_front", *META])
def test_a_chunk_that_is_gone_is_not_read_as_zeros(new_store, name, zarr_format):
    path = new_store(3, zarr_format=zarr_format)
    chunk_file(path, name).unlink()
    (message,) = errors(path)
    assert message.startswith(name) and "the chunk's file is missing" in message
    with pytest.raises(StoreError, match="the chunk's file is missing"):
        Store.open(path).read("depth_front", 0, 1)


def test_chunks_of_zeros_are_not_taken_for_missing_ones(tmp_path, build):
    spec = build.spec()
    with Store.create(tmp_path / "z.zarr", spec) as store:
        episode = build.episode(0, spec)
        episode.arrays["depth_front"][:] = 0
        store.append(episode)
    (finding,) = validate(tmp_path / "z.zarr")
    assert (finding.level, finding.where) == ("warning", "data/depth_front, episode 0")
    assert "every frame is invalid" in finding.message


def test_timestamps(new_store):
    path = new_store(3, length=10)
    array = zarr.open_group(path)["data/timestamp"]
    array[15:20] = array[15:20] + 0.3
    (finding,) = validate(path)
    assert (finding.level, finding.where) == ("warning", "data/timestamp, episode 1, step 5")
    assert "irregular: 0.4000 s after 0.1000 s" in finding.message
    array[15] = 0
    assert errors(path)[0].startswith("data/timestamp, episode 1, step 5: time does not increase")


def test_tail_tasks_ids_and_attributes(new_store):
    path = new_store(3, length=10)
    group = zarr.open_group(path)
    group["data/action"].resize((37, 4))
    group["meta/episode_task"][1] = 9
    group["meta/episode_id"][2] = "e0"
    found = {f.where: f.message for f in validate(path)}
    assert found["tail"].startswith("7 rows behind the last committed episode")
    assert found["meta/episode_task, episode 1"].startswith("task 9 does not exist; there are 2")
    assert found["meta/episode_id"].startswith("'e0' occurs 2 times")
    edit_attrs(path, lambda attrs: attrs.update(schema_version=99))
    assert errors(path) == ["attributes: schema_version is 99; this padpolicy reads 1."]
    (path / "zarr.json").write_text("{")
    assert "metadata cannot be read" in errors(path)[0]


def test_a_gripper_beyond_its_two_values(new_store):
    path = new_store(3, length=10)
    edit_attrs(path, lambda attrs: attrs["fields"]["action"].update(gripper_range=[1.0, -1.0]))
    assert errors(path) == []
    zarr.open_group(path)["data/action"][14:17, 3] = -1.5
    assert errors(path) == [
        "data/action, episode 1, step 4: from here on 3 of 30 rows have the binary gripper beyond gripper_range "
        "[1.0, -1.0]. Correct gripper_range in the attributes, or the data."
    ]
    edit_attrs(path, lambda attrs: attrs["fields"]["action"].update(gripper_range=[1.0, 1.0]))
    assert errors(path) == [
        "fields/action: action gripper_range is [1.0, 1.0]; expected two values that differ.",
    ]


def test_no_store_at_all(tmp_path):
    assert "there is nothing at this path" in errors(tmp_path / "nowhere")[0]
