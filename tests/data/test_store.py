"""The store: what goes in comes out, a kill harms nothing, and damage is named."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from padpolicy.data.store import Episode, Store, StoreError
from padpolicy.data.validate import validate


@pytest.mark.parametrize("zarr_format", [3, 2])
def test_episodes_come_out_as_they_went_in(new_store, build, zarr_format):
    path = new_store(5, zarr_format=zarr_format)
    store = Store.open(path)
    assert store.n_episodes == 5 and store.n_rows == sum(len(build.episode(i, build.spec())) for i in range(5))
    for i in range(5):
        build.assert_same(store.episode(i), build.episode(i, build.spec()))
    assert store.group.metadata.zarr_format == zarr_format
    assert store.action_spec == build.spec().action


def test_format_3_has_a_checksum_on_every_array_and_format_2_opens_with_plain_zarr(new_store):
    group = zarr.open_group(new_store(1), mode="r")
    arrays = [group[f"{part}/{name}"] for part in ("data", "meta") for name in group[part].array_keys()]
    assert len(arrays) == 12
    assert all(type(array.compressors[-1]).__name__ == "Crc32cCodec" for array in arrays)
    old = new_store(1, name="old.zarr", zarr_format=2)
    assert (old / ".zgroup").is_file() and not (old / "zarr.json").exists()


def test_appending_goes_on_after_reopening_and_adds_unknown_tasks(new_store, build):
    path = new_store(2)
    with Store.open(path, "a") as store:
        episode = build.episode(2, build.spec())
        episode.task = "wave"
        assert store.append(episode) == 2
        build.assert_same(store.episode(2), episode)  # seen by the writer too
    store = Store.open(path)
    assert [store.task_of(i)["name"] for i in range(3)] == ["push the cube", "lift the cube", "wave"]
    build.assert_same(store.episode(0), build.episode(0, build.spec()))


def test_action_free_stores_have_neither_action_nor_proprio(new_store):
    store = Store.open(new_store(2, action=None, proprio=None, depth_cameras=[]))
    assert sorted(store.fields) == ["rgb_front", "rgb_wrist"] and store.action_spec is None


def test_rows_in_any_order_and_from_several_threads(new_store):
    store = Store.open(new_store(20), cache_bytes=50_000)
    everything = store.array("rgb_front")[: store.n_rows]
    failures = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            rows = rng.integers(0, store.n_rows, 5)
            if not np.array_equal(store.rows("rgb_front", rows), everything[rows]):
                failures.append(rows)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_store_travels_to_another_process_by_its_path(new_store):
    store = Store.open(new_store(2))
    assert pickle.loads(pickle.dumps(store)).n_rows == store.n_rows


def test_one_writer_and_a_dead_one_does_not_count(new_store):
    path = new_store(1)
    with Store.open(path, "a"):
        with pytest.raises(StoreError, match=f"is being written by process {os.getpid()}"):
            Store.open(path, "a")
        assert Store.open(path).n_episodes == 1  # readers are free
    (path / ".lock").write_text("999999")  # a lock file left behind by a process that died
    Store.open(path, "a").close()


BAD_EPISODES = [
    (lambda a: a["action"].__setitem__((3, 1), np.nan), "action is NaN or infinite at step 3"),
    (lambda a: a.pop("action"), r"missing arrays \['action'\]"),
    (lambda a: a.update(extra=a["action"]), r"unknown arrays \['extra'\]"),
    (lambda a: a.update(proprio=a["proprio"][:-1]), r"proprio has shape \(7, 3\); expected \(8, 3\)"),
    (lambda a: a.update(rgb_front=a["rgb_front"] / 255), "rgb_front is float64; expected uint8"),
    (lambda a: a["timestamp"].__setitem__(4, 0.1), "timestamp does not increase at step 4"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_EPISODES)
def test_bad_episodes_are_refused_and_leave_no_trace(new_store, build, spoil, message):
    path = new_store(1)
    episode = build.episode(1, build.spec(), length=8)
    spoil(episode.arrays)
    with Store.open(path, "a") as store:
        with pytest.raises(StoreError, match=message):
            store.append(episode)
        assert store.n_episodes == 1 and store.array("action").shape[0] == store.n_rows


def test_the_example_of_the_docs_makes_a_store(tmp_path, monkeypatch):
    document = Path(__file__).parents[2] / "docs" / "data.md"
    monkeypatch.chdir(tmp_path)
    exec(document.read_text().split("```python\n")[1].split("```")[0], {})
    assert Store.open("mine.zarr").task_of(0)["name"] == "push the cube"
    assert not [finding for finding in validate("mine.zarr") if finding.level == "error"]


def test_a_tail_is_ignored_and_overwritten(new_store, build):
    path = new_store(2)
    group = zarr.open_group(path)
    rows = group["data/action"].shape[0]
    group["data/action"].resize((rows + 50, 4))
    group["data/action"][rows:] = np.nan
    store = Store.open(path)
    assert store.n_rows == rows
    with pytest.raises(StoreError, match=f"expected 0..{rows - 1}"):
        store.read("action", rows, rows + 1)
    with Store.open(path, "a") as store:
        store.append(build.episode(2, build.spec()))
    build.assert_same(Store.open(path).episode(2), build.episode(2, build.spec()))


APPEND_FOREVER = """
import importlib.util, sys
from padpolicy.data.store import Store
module = importlib.util.spec_from_file_location("conftest", sys.argv[2])
conftest = importlib.util.module_from_spec(module)
module.loader.exec_module(conftest)
spec = conftest.make_spec()
with Store.open(sys.argv[1], "a") as store:
    print("ready", flush=True)
    while True:
        store.append(conftest.make_episode(store.n_episodes, spec))
        print("appended", flush=True)
"""


def test_kill_9_at_random_moments_of_appending_harms_no_committed_row(new_store, build):
    path, rng = new_store(1), np.random.default_rng(0)
    conftest = str(Path(__file__).parent / "conftest.py")
    counts = [1]
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", APPEND_FOREVER, str(path), conftest], stdout=subprocess.PIPE, env=os.environ
        )
        with child:
            assert child.stdout.readline() == b"ready\n"
            assert child.stdout.readline() == b"appended\n"
            time.sleep(rng.uniform(0, 0.3))
            os.kill(child.pid, signal.SIGKILL)
        store = Store.open(path)
        assert store.n_episodes > counts[-1]
        counts.append(store.n_episodes)
        for i in range(counts[-2] - 1, store.n_episodes):
            build.assert_same(store.episode(i), build.episode(i, build.spec()))
    Store.open(path, "a").close()
    assert not list(path.rglob("*.partial"))


def test_appending_clears_what_its_own_lock_guards(new_store):
    """latents/ may be in the middle of a write by another process."""
    path = new_store(1)
    (path / "latents" / "abc").mkdir(parents=True)
    mine = [path / "zarr.json.7.partial", path / "data/action/c.0.7.partial", path / "meta/episode_id/c.7.partial"]
    theirs = path / "latents/abc/zarr.json.7.partial"
    for file in [*mine, theirs]:
        file.write_text("")
    Store.open(path, "a").close()
    assert list(path.rglob("*.partial")) == [theirs]


def test_create_refuses_to_overwrite(new_store, build):
    with pytest.raises(StoreError, match="exists"):
        Store.create(new_store(1), build.spec())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is nothing at this path"),
        (lambda path: path.mkdir(), "not a zarr store"),
        (lambda path: zarr.create_group(path), "not a padpolicy store"),
    ],
)
def test_what_is_not_a_store_says_so(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(StoreError, match=message):
        Store.open(tmp_path / "x")


def test_reading_stores_cannot_append(new_store):
    with pytest.raises(StoreError, match="open for reading"):
        Store.open(new_store(1)).append(Episode({}))
