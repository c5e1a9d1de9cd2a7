"""robomimic HDF5: files written by h5py, laid out as robomimic lays them out, read exactly or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from padpolicy.data.convert import ConvertError, DamagedError, Options, convert, open_recording
from padpolicy.data.letterbox import letterbox
from padpolicy.data.store import Store

OSC_POSE = {
    "type": "OSC_POSE",
    "control_delta": True,
    "output_max": [0.05] * 3 + [0.5] * 3,
    "output_min": [-0.05] * 3 + [-0.5] * 3,
}
STATES = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
TASK = Options(task="lift the cube")


def env_args(controller: Any = OSC_POSE, **kwargs: Any) -> str:
    kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": controller} | kwargs
    return json.dumps({"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs})


def demo(number: int, n: int, size: tuple[int, int] = (8, 6), dims: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    arrays: dict[str, np.ndarray] = {
        "actions": rng.uniform(-1, 1, (n, dims)),
        "rewards": np.eye(n)[-1] * (number % 2),
        "dones": np.eye(n)[-1].astype(np.int64),
        "states": rng.normal(size=(n, 5)),
        "obs/agentview_image": rng.integers(0, 256, (n, *size, 3), np.uint8),
        "obs/agentview_depth": rng.uniform(0.3, 2, (n, *size, 1)).astype(np.float32),
        "obs/robot0_eye_in_hand_image": rng.integers(0, 256, (n, 4, 4, 3), np.uint8),
    }
    return arrays | {f"obs/{key}": rng.normal(size=(n, dim)) for key, dim in STATES.items()}


def write(path: Path, demos: dict[int, dict[str, np.ndarray]], args: str | None = None, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = env_args() if args is None else args
        for number, arrays in demos.items():
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = len(arrays["actions"])
            for key, values in arrays.items():
                group.create_dataset(key, data=values, **options)
        file["mask/train"] = np.array([f"demo_{number}".encode() for number in demos if number != 2])
    return path


@pytest.fixture
def lift(tmp_path: Path) -> Path:
    return write(tmp_path / "lift.hdf5", {number: demo(number, 3 + number) for number in (10, 2, 1)})


@pytest.mark.parametrize("options", [{}, {"chunks": True, "compression": "gzip"}])
def test_what_is_in_the_file_is_in_the_store(tmp_path, options):
    numbers = (1, 2, 10)  # in the order of the numbers, not of the names
    path = write(tmp_path / "lift.hdf5", {number: demo(number, 3 + number) for number in (10, 2, 1)}, **options)
    done = convert(path, tmp_path / "ours.zarr", options=TASK)
    store = Store.open(done.path)
    assert [str(name) for name in store.meta["episode_id"]] == [f"demo_{number}" for number in numbers]
    for i, number in enumerate(numbers):
        source, episode = demo(number, 3 + number), store.episode(i)
        np.testing.assert_array_equal(episode.arrays["rgb_agentview"], source["obs/agentview_image"])
        np.testing.assert_array_equal(episode.arrays["rgb_robot0_eye_in_hand"], source["obs/robot0_eye_in_hand_image"])
        mm = np.rint(source["obs/agentview_depth"][..., 0].astype(np.float64) * 1000)
        np.testing.assert_array_equal(episode.arrays["depth_agentview"], mm)
        np.testing.assert_array_equal(episode.arrays["action"], source["actions"].astype(np.float32))
        state = np.concatenate([source[f"obs/{key}"] for key in list(STATES)[:3]], 1)
        np.testing.assert_array_equal(episode.arrays["proprio"], state.astype(np.float32))
        assert episode.task == "lift the cube" and episode.success == bool(number % 2)
    assert store.spec.dt_s == 0.05 and (store.robot, store.renderer) == ("Panda", "robosuite")
    assert store.spec.depth_cameras == ["agentview"]
    assert any("object (10,) float64" in note for note in done.notes)


def test_what_the_controller_says_about_actions(lift, tmp_path):
    def spec_of(controller: Any, options: Options = TASK, dims: int = 7):
        path = write(tmp_path / "one.hdf5", {0: demo(0, 3, dims=dims)}, env_args(controller))
        recording = open_recording(path, options)
        recording.close()
        return recording.spec.action, recording.notes.lines

    action, notes = spec_of(OSC_POSE)
    assert (action.kind, action.rotation, action.gripper) == ("delta", "none", "continuous")
    assert action.names == ["x", "y", "z", "rx", "ry", "rz", "gripper"]
    assert action.scale == [0.05] * 3 + [0.5] * 3 + [1] and any("axis times an angle" in note for note in notes)
    since_15 = {
        "type": "BASIC",
        "body_parts": {"right": {"type": "OSC_POSE", "input_type": "delta", "input_max": 2, "input_min": -2}},
    }
    assert spec_of(since_15)[0].scale == [0.025] * 3 + [0.25] * 3 + [1]
    absolute, _ = spec_of(OSC_POSE | {"control_delta": False})
    assert (absolute.kind, absolute.scale, absolute.units[3]) == ("absolute", [1.0] * 7, "rad")
    for unknown in (
        None,
        [OSC_POSE] * 2,
        {"type": "JOINT_POSITION", "control_delta": True},
        OSC_POSE | {"output_min": -1},
    ):
        action, notes = spec_of(unknown)
        assert action.kind == "unknown" and any("--action-kind" in note for note in notes)
    assert spec_of(OSC_POSE, dims=14)[0].names[-1] == "action_13"
    assert spec_of(None, Options(task="lift", action_kind="delta"))[0].kind == "delta"


def test_instructions_success_and_times_come_from_where_they_are(tmp_path):
    said = {number: demo(number, 4) for number in range(4)}
    del said[0]["rewards"], said[1]["rewards"], said[1]["dones"]
    said[2]["rewards"][:] = 0
    path = write(tmp_path / "lift.hdf5", said, env_args(control_freq=None))
    with h5py.File(path, "r+") as file:
        for number in (0, 1, 2):
            file[f"data/demo_{number}"].attrs["ep_meta"] = json.dumps({"lang": f"say {number}"})
    with pytest.raises(ConvertError, match="Give --fps"):
        open_recording(path, TASK)
    recording = open_recording(path, Options(fps=5))
    assert recording.spec.dt_s == 0.2
    episodes = [recording.episode(i) for i in range(3)]
    assert [episode.task for episode in episodes] == ["say 0", "say 1", "say 2"]
    assert [episode.success for episode in episodes] == [True, True, False]
    with pytest.raises(ConvertError, match="Give --task"):
        recording.episode(3)
    recording.close()


def test_options_choose(lift):
    options = Options(
        task="lift",
        filter_key="train",
        cameras=("robot0_eye_in_hand",),
        proprio=("object", "robot0_eef_pos"),
        robot="arm",
    )
    recording = open_recording(lift, options)
    assert recording.ids == ["demo_1", "demo_10"]
    assert list(recording.spec.cameras) == ["robot0_eye_in_hand"] and recording.spec.robot == "arm"
    assert recording.spec.proprio["names"] == [
        *(f"object_{i}" for i in range(10)),
        *(f"robot0_eef_pos_{i}" for i in range(3)),
    ]
    expected = np.concatenate([demo(10, 13)["obs/object"], demo(10, 13)["obs/robot0_eef_pos"]], 1)[4:9]
    np.testing.assert_array_equal(recording.episode(1).arrays["proprio"][4:9], expected.astype(np.float32))
    recording.close()
    for wrong, message in (
        (Options(task="t", filter_key="valid"), "--filter-key valid is not in mask/; there are train"),
        (Options(task="t", cameras=("front",)), "no camera 'front'; there are agentview, robot0_eye_in_hand"),
        (Options(task="t", proprio=("joints",)), "--proprio joints: data/demo_1/obs has object, robot0_eef_pos"),
        (Options(), "Give --task"),
    ):
        with pytest.raises(ConvertError, match=message):
            open_recording(lift, wrong)


def test_pictures_of_another_size(lift):
    recording = open_recording(lift, Options(task="lift", image_size=4))
    episode, source = recording.episode(0), demo(1, 4)
    np.testing.assert_array_equal(episode.arrays["rgb_agentview"][:], letterbox(source["obs/agentview_image"], 4))
    assert episode.arrays["depth_agentview"].shape == episode.arrays["depth_agentview"][:].shape == (4, 4, 4)
    recording.close()


def test_depth_that_cannot_be_is_none(tmp_path):
    arrays = demo(0, 2)
    arrays["obs/agentview_depth"][0, :5, 0, 0] = [np.nan, np.inf, -1, 65.536, 65.535]
    recording = open_recording(write(tmp_path / "lift.hdf5", {0: arrays}), TASK)
    assert recording.episode(0).arrays["depth_agentview"][0:1][0, :5, 0].tolist() == [0, 0, 0, 0, 65535]
    recording.close()


def broken(tmp_path: Path, change: Any) -> Path:
    path = write(tmp_path / "broken.hdf5", {number: demo(number, 4) for number in range(3)})
    with h5py.File(path, "r+") as file:
        change(file["data/demo_1"])
    return path


def never_written(group: h5py.Group) -> None:
    del group["obs/agentview_image"]
    group.create_dataset("obs/agentview_image", (4, 8, 6, 3), np.uint8)


def some_chunks(group: h5py.Group) -> None:
    del group["obs/agentview_image"]
    group.create_dataset("obs/agentview_image", (4, 8, 6, 3), np.uint8, chunks=(1, 8, 6, 3))[2] = 1


def shorter(group: h5py.Group) -> None:
    del group["obs/object"], group["obs/robot0_eef_pos"]
    group["obs/robot0_eef_pos"] = np.zeros((3, 3))


def nan(group: h5py.Group) -> None:
    group["actions"][2, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (never_written, "agentview_image cannot be read: the file holds 0 of its 576 bytes"),
        (some_chunks, "agentview_image cannot be read: the file holds 1 of its 4 chunks"),
        (shorter, r"robot0_eef_pos cannot be read: it has shape \(3, 3\); expected 4 rows"),
        (nan, "data/demo_1/actions is NaN or infinite at row 2"),
        (lambda group: group.attrs.modify("num_samples", 5), "data/demo_1 has 4 actions, but says num_samples 5"),
        (lambda group: group.attrs.create("ep_meta", "{"), "ep_meta of data/demo_1 cannot be read"),
        (lambda group: group.pop("obs/agentview_image"), "agentview_image cannot be read: it is missing"),
    ],
)
def test_a_damaged_demonstration_says_so_or_is_left_out(tmp_path, change, message):
    path = broken(tmp_path, change)
    with pytest.raises(DamagedError, match=message):
        convert(path, tmp_path / "ours.zarr", options=TASK)
    assert not (tmp_path / "ours.zarr").exists()
    done = convert(path, tmp_path / "ours.zarr", options=Options(task="lift the cube", skip_damaged=True))
    assert list(done.skipped) == ["demo_1"] and done.episodes == 2


def test_other_hdf5_and_cut_files_are_errors(tmp_path, lift):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["observations"] = np.zeros(3)
    with pytest.raises(ConvertError, match=r"expected data/demo_<i>, as robomimic has it; the file has observations"):
        open_recording(tmp_path / "other.h5", TASK)
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(lift.read_bytes()[:5000])
    with pytest.raises(ConvertError, match=r"cut.hdf5 cannot be opened as HDF5"):
        open_recording(cut, TASK)
