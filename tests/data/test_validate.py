"""Every planted fault is found, once, and its message says where it is; sound data has no findings."""

import json
import shutil

import numpy as np
import pytest
import zarr

from padpolicy import cli
from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Episode, Store, StoreError, StoreSpec
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
        "data/action, episode 1, step 4: the binary gripper is beyond gripper_range [1.0, -1.0]. Correct "
        "gripper_range in the attributes, or the data. 3 such steps in this episode."
    ]
    edit_attrs(path, lambda attrs: attrs["fields"]["action"].update(gripper_range=[1.0, 1.0]))
    assert errors(path) == [
        "fields/action: action gripper_range is [1.0, 1.0]; expected two values that differ.",
    ]


def test_no_store_at_all(tmp_path):
    assert "there is nothing at this path" in errors(tmp_path / "nowhere")[0]


# -- contents ------------------------------------------------------------------------------------------------------

STEPS, EPISODES = 24, 12  # of `sound`: row = STEPS * episode + step


def moving(number: int, kind: str = "delta", size: int = 16) -> Episode:
    """An arm that goes where it is told, in pictures that show where it is."""
    rng = np.random.default_rng(number)
    speed = rng.normal(size=(STEPS, 2)).astype(np.float32)
    proprio = np.zeros((STEPS, 3), np.float32)
    proprio[1:, :2] = 0.02 * np.cumsum(speed, 0)[:-1]
    proprio[:, 2] = rng.random(STEPS)
    action = np.concatenate([speed, rng.integers(0, 2, (STEPS, 1))], 1).astype(np.float32)
    if kind == "absolute":
        action[:, :2] = proprio[:, :2] / 0.02 + speed
    arrays = {
        "rgb_front": rng.integers(30, 256, (STEPS, size, size, 3), np.uint8),
        "rgb_wrist": rng.integers(30, 256, (STEPS, size, size, 3), np.uint8),
        "depth_front": rng.integers(400, 1500, (STEPS, size, size), np.uint16),
        "proprio": proprio,
        "action": action,
    }
    return Episode(arrays, "go", seed=1000 + number, id=f"e{number}")


def moving_spec(**changes) -> StoreSpec:
    camera = {"size": [16, 16], "intrinsics": None, "extrinsics": None}
    action = ActionSpec("delta", ["x", "y", "gripper"], 0.1, gripper="binary", scale=[0.02, 0.02, 1])
    values = {
        "cameras": {"front": camera, "wrist": camera},
        "depth_cameras": ["front"],
        "proprio": {"names": ["x", "y", "gripper"], "unit": "m"},
        "action": action,
        "renderer": "rays",
        "dt_s": 0.1,
    }
    return StoreSpec(**values | changes)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "s.zarr"
    with Store.create(path, moving_spec()) as store:
        for number in range(EPISODES):
            store.append(moving(number))
    assert validate(path) == []
    return path


def put(array, rows, value):
    """Sets rows of an array; `value` may be a function of what is there."""

    def plant(group):
        there = group[f"data/{array}"][rows]
        there[:] = value(there) if callable(value) else value
        group[f"data/{array}"][rows] = there

    return plant


def roll(array, by):
    """Moves every episode's rows by so many steps; the end is repeated."""

    def plant(group):
        rows = group[f"data/{array}"][:].reshape(EPISODES, STEPS, -1)
        steps = np.clip(np.arange(STEPS) - by, 0, STEPS - 1)
        group[f"data/{array}"][:] = rows[:, steps].reshape(EPISODES * STEPS, -1)

    return plant


def dim(column, value):
    def change(rows):
        rows[:, column] = value(rows[:, column]) if callable(value) else value
        return rows

    return change


def copy_episode(group):
    for name in ("rgb_front", "rgb_wrist", "depth_front", "proprio", "action"):
        group[f"data/{name}"][5 * STEPS : 6 * STEPS] = group[f"data/{name}"][2 * STEPS : 3 * STEPS]


def same_seeds(group):
    group["meta/episode_seed"][7:10] = [1001, 1001, 1004]


EVERY = slice(0, EPISODES * STEPS)
EPISODE_3, EPISODE_4 = slice(3 * STEPS, 4 * STEPS), slice(4 * STEPS, 5 * STEPS)
FAULTS = {
    "NaN in two episodes": (
        put("proprio", slice(4 * STEPS - 2, 4 * STEPS + 1), np.nan),
        ("error", "data/proprio, episode 3, step 22"),
        "dimension 0 is nan. Drop or repair the episode. 3 such steps in 2 of 12 episodes: 3, 4.",
    ),
    "constant dimension": (
        put("proprio", EVERY, dim(1, 0.3)),
        ("warning", "data/proprio"),
        "never changes: y. A sensor that was not read",
    ),
    "saturated dimension": (
        put("action", EVERY, dim(0, lambda x: np.clip(x, -0.3, 0.3))),
        ("warning", "data/action"),
        "stands at its least or greatest value: x in 73% of the steps (-0.3 or 0.3). Clipped when",
    ),
    "black frames": (
        put("rgb_wrist", slice(75, 78), lambda rows: rows // 32),
        ("warning", "data/rgb_wrist, episode 3, step 3"),
        "the frame is black: the camera dropped out. Cut the steps out, or drop the episode. 3 such steps in this",
    ),
    "a camera that was covered": (
        put("rgb_front", slice(2 * STEPS, 8 * STEPS), 9),
        ("warning", "data/rgb_front, episode 2"),
        "every frame is black: was the camera covered or off? Drop the episode, or leave the camera out. "
        "The same in 6 of 12 episodes: 2, 3, 4, 5, 6 and 1 more.",
    ),
    "a camera without signal": (
        put("rgb_front", EPISODE_3, np.array([0, 0, 255], np.uint8)),
        ("warning", "data/rgb_front, episode 3"),
        "every frame is one colour",
    ),
    "frozen frames": (
        put("rgb_front", slice(80, 90), lambda rows: rows[:1]),
        ("warning", "data/rgb_front, episode 3, step 8"),
        "the same picture, up to 10 steps (0.9 s) long, while the robot moves: the camera hung, or cannot see it.",
    ),
    "frozen depth": (
        put("depth_front", slice(80, 86), lambda rows: rows[:1]),
        ("warning", "data/depth_front, episode 3, step 8"),
        "the same picture, up to 6 steps (0.5 s) long, while the robot moves",
    ),
    "proprioception that hangs": (
        put("proprio", slice(78, 94), lambda rows: rows[:1]),
        ("warning", "data/proprio, episode 3, step 6"),
        "the same numbers, up to 16 steps (1.5 s) long, while the actions command motion",
    ),
    "pictures of 0..1 as bytes": (
        put("rgb_front", EVERY, lambda rows: (rows > 200).astype(np.uint8)),
        ("error", "data/rgb_front, episode 0"),
        "no pixel is above 1: pictures of 0..1 were stored as bytes. Multiply by 255, and convert again. "
        "The same in 12 of 12 episodes",
    ),
    "depth in metres": (
        put("depth_front", EVERY, lambda rows: rows // 1000),
        ("error", "data/depth_front, episode 0"),
        "the farthest point is 1 mm away: metres were stored as millimetres.",
    ),
    "depth mostly invalid": (
        put("depth_front", EPISODE_3, lambda rows: rows * (rows > 1100)),
        ("warning", "data/depth_front, episode 3"),
        "64% of the depth is invalid (0).",
    ),
    "depth that drops out": (
        put("depth_front", slice(3 * STEPS, 4 * STEPS - 4), 0),
        ("warning", "data/depth_front, episode 3"),
        "83% of the depth is invalid (0).",
    ),
    "no depth at all": (
        put("depth_front", EPISODE_4, 0),
        ("warning", "data/depth_front, episode 4"),
        "every frame is invalid: was the camera covered or off?",
    ),
    "action a row late": (
        roll("action", 1),
        ("warning", "data/action"),
        "it fits the motion a step before it best (R2 1.00 there, 0.0",
    ),
    "action a row early": (
        roll("action", -1),
        ("warning", "data/action"),
        "it fits the motion a step behind it best (R2 1.00 there, 0.0",
    ),
    "a frame was dropped": (
        put("timestamp", slice(100, 120), lambda rows: rows + 0.1),
        ("warning", "data/timestamp, episode 4, step 4"),
        "irregular: 0.2000 s after 0.1000 s usually. Frames were dropped or the clock jumped",
    ),
    "another rate than declared": (
        put("timestamp", EVERY, lambda rows: rows / 3),
        ("warning", "data/timestamp, episode 0"),
        "a step usually takes 0.03333 s, but the actions are declared with dt_s 0.1.",
    ),
    "an episode twice": (
        copy_episode,
        ("warning", "episode 5"),
        "the same recording as episode 2: recorded or converted twice?",
    ),
    "a scene twice": (
        same_seeds,
        ("warning", "meta/episode_seed, episode 7"),
        "the scene of episode 1 again (seed 1001, 'go'). The validation split goes by id: what is validated on may "
        "have been seen. Drop one, or validate on a store of its own. The same in 3 of 12 episodes: 7, 8, 9.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_once(sound, tmp_path, fault):
    plant, expected, words = FAULTS[fault]
    path = shutil.copytree(sound, tmp_path / "s.zarr")
    plant(zarr.open_group(path))
    (finding,) = validate(path)
    assert (finding.level, finding.where) == expected
    assert words in finding.message


def test_damaged_chunks_are_one_finding(new_store):
    path = new_store(3, length=200)
    for chunk in range(2):
        file = chunk_file(path, "data/rgb_front", chunk)
        file.write_bytes(file.read_bytes()[:-4] + b"none")
    (finding,) = validate(path)
    assert finding.where == "data/rgb_front, episode 0, step 0"
    assert finding.message.endswith("from a copy, or rebuild the store. 2 of 2 chunks are damaged.")


@pytest.mark.parametrize(("by", "level"), [(0, None), (1, "warning"), (-1, "warning")])
def test_the_lag_of_absolute_actions(tmp_path, by, level):
    spec = moving_spec(
        action=ActionSpec("absolute", ["x", "y", "gripper"], 0.1, gripper="binary", scale=[0.02, 0.02, 1])
    )
    with Store.create(tmp_path / "s.zarr", spec) as store:
        for number in range(EPISODES):
            store.append(moving(number, "absolute"))
    roll("action", by)(zarr.open_group(tmp_path / "s.zarr"))
    assert [f.level for f in validate(tmp_path / "s.zarr")] == ([level] if level else [])


def test_a_slow_arm_is_no_fault(sound, tmp_path):
    """It follows over several steps, so that no single step is clearly the right one."""
    path = shutil.copytree(sound, tmp_path / "s.zarr")
    group = zarr.open_group(path)
    action = group["data/action"][:, :2].reshape(EPISODES, STEPS, 2)
    speed = sum(weight * np.roll(action, lag, 1) for lag, weight in enumerate((0.2, 0.3, 0.3, 0.2)))
    proprio = group["data/proprio"][:].reshape(EPISODES, STEPS, 3)
    proprio[:, 1:, :2] = 0.02 * np.cumsum(speed, 1)[:, :-1]
    group["data/proprio"][:] = proprio.reshape(-1, 3)
    assert validate(path) == []


def test_an_executed_action_is_looked_at_too(sound, tmp_path):
    with Store.create(tmp_path / "s.zarr", moving_spec(executed=True)) as store:
        for number in range(EPISODES):
            episode = moving(number)
            executed = episode.arrays["action"]
            label = executed + np.float32([0.3, 0.3, 0]) * np.random.default_rng(number).normal(size=(STEPS, 1))
            store.append(Episode({**episode.arrays, "action": label.astype("f4"), "executed": executed}, "go"))
    assert validate(tmp_path / "s.zarr") == []
    roll("executed", 1)(zarr.open_group(tmp_path / "s.zarr"))
    assert [(f.level, f.where) for f in validate(tmp_path / "s.zarr")] == [("warning", "data/executed")]


def test_what_an_episode_lacks_is_no_fault(tmp_path):
    """Its rows are zeros: not black, not frozen, not invalid, and no copies of each other."""
    optional = ["rgb_wrist", "depth_front", "proprio"]
    with Store.create(tmp_path / "s.zarr", moving_spec(optional=optional)) as store:
        for number in range(EPISODES):
            episode = moving(number)
            if number % 3:
                arrays = {name: rows for name, rows in episode.arrays.items() if name not in optional}
                episode = Episode(arrays, "go", id=episode.id)
            store.append(episode)
    assert validate(tmp_path / "s.zarr") == []


def test_a_resting_robot_is_no_frozen_camera(sound, tmp_path):
    path = shutil.copytree(sound, tmp_path / "s.zarr")
    group = zarr.open_group(path)
    for name in ("rgb_front", "rgb_wrist", "depth_front", "proprio"):
        put(name, slice(80, 95), lambda rows: rows[:1])(group)
    put("action", slice(80, 94), dim(slice(0, 2), 0))(group)
    assert validate(path) == []


@pytest.mark.parametrize("still", [False, True])
def test_a_video_that_hangs(tmp_path, still):
    """Nobody says whether a robot moved: only an episode of one single picture is reported."""
    spec = StoreSpec({"front": {"size": [16, 16], "intrinsics": None, "extrinsics": None}}, dt_s=0.1)
    with Store.create(tmp_path / "v.zarr", spec) as store:
        for number in range(3):
            frames = moving(number).arrays["rgb_front"]
            frames[0 if still else 1 :] = frames[1]
            store.append(Episode({"rgb_front": frames}, "go"))
    found = [(f.level, f.where) for f in validate(tmp_path / "v.zarr")]
    assert found == ([("warning", "data/rgb_front, episode 0, step 0")] if still else [])


# -- against a store that is tested on -------------------------------------------------------------------------------


def leaks(path, against) -> list[tuple[str, str]]:
    return [(f.level, f.where) for f in validate(path, against=against)]


def new(path, numbers, **changes):
    with Store.create(path, moving_spec(**changes)) as store:
        for number in numbers:
            episode = moving(number)
            arrays = {name: rows for name, rows in episode.arrays.items() if name in store.fields}
            store.append(Episode(arrays, "go", seed=episode.seed, id=f"{path.stem}-{number}"))
    return path


def test_stores_with_nothing_in_common(sound, tmp_path):
    assert leaks(sound, new(tmp_path / "t.zarr", range(20, 23))) == []


def test_a_recording_in_both(sound, tmp_path):
    test = new(tmp_path / "t.zarr", [20, 7, 3])
    (finding,) = validate(sound, against=test)
    assert (finding.level, finding.where) == ("error", "episode 3")
    assert finding.message == (
        f"the same recording is episode 2 of {test} ('t-3'). Drop one. The same in 2 of 12 episodes: 3, 7."
    )


def test_only_what_both_have_is_compared(sound, tmp_path):
    """The test store was recorded without depth."""
    assert leaks(sound, new(tmp_path / "t.zarr", [20, 3], depth_cameras=[])) == [("error", "episode 3")]


def test_the_same_motion_in_other_pictures(sound, tmp_path):
    test = new(tmp_path / "t.zarr", [20, 3])
    put("rgb_front", slice(STEPS, 2 * STEPS), lambda rows: 255 - rows // 2)(zarr.open_group(test))
    assert leaks(sound, test) == [("warning", "episode 3")]


@pytest.mark.parametrize(("renderer", "level"), [("rays", "error"), ("", "warning")])
def test_the_same_scene_in_both(sound, tmp_path, renderer, level):
    test = new(tmp_path / "t.zarr", [20, 21], renderer=renderer)
    zarr.open_group(test)["meta/episode_seed"][1] = 1004
    assert leaks(sound, test) == [(level, "meta/episode_seed, episode 4")]


def test_the_same_name_of_another_recording(sound, tmp_path):
    test = new(tmp_path / "t.zarr", [20, 21])
    zarr.open_group(test)["meta/episode_id"][0] = "e5"
    assert leaks(sound, test) == [("info", "meta/episode_id, episode 5")]


def test_what_cannot_be_compared_says_so(sound, tmp_path):
    with pytest.raises(StoreError, match="nowhere: there is nothing at this path"):
        validate(sound, against=tmp_path / "nowhere")
    test = new(tmp_path / "t.zarr", [20])
    chunk_file(test, "data/proprio").unlink()
    assert leaks(sound, test) == [("warning", str(test))]


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command(sound, tmp_path, capsys):
    def run(*arguments):
        code = cli.main(["validate", *map(str, arguments)])
        return code, *capsys.readouterr()

    test = new(tmp_path / "t.zarr", [20, 3])
    assert run(sound) == (0, f"{sound}: sound\n", "")
    code, out, _ = run(sound, "--against", test)
    assert code == 1 and out.startswith("error: episode 3: the same recording is episode 1 of ")
    code, out, _ = run(sound, f"--against={test}", "--json")
    assert code == 1 and [f["level"] for f in json.loads(out)["findings"]] == ["error"]
    code, _, err = run(sound, "--against")
    assert code == 2 and "--against needs a value" in err
    put("rgb_front", slice(0, 2), 0)(zarr.open_group(test))
    code, out, _ = run(test)
    assert code == 0 and out.startswith("warning: data/rgb_front, episode 0, step 0: the frame is black")
