"""Everything in docs/errors.md through the command line: the exit code, one paragraph, and what it must say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zarr
from tiny_run import make_store, settings, use_exact_encoders

from padpolicy import cli
from padpolicy.training.loop import train

DOCUMENTED = (Path(__file__).resolve().parents[1] / "docs" / "errors.md").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a run of one step on it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    make_store(folder / "demos.zarr")
    with pytest.MonkeyPatch.context() as patch:
        use_exact_encoders(patch.setattr)
        train(settings(folder / "run", folder / "demos.zarr", "training.steps=1"))
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to damage, as the current directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    use_exact_encoders(monkeypatch.setattr)
    return tmp_path


def train_on(*settings: str, out: str = "new", data: str = "demos.zarr") -> list[str]:
    small = ["data.image_size=32", "model.width=16", "model.depth_size=8", "model.depth_patch=4", "data.val_fraction=0"]
    same = ["training.precision=fp32", "training.ema=0.9", "encoders.text_tokens=4"]  # as `made`
    return ["train", "experiment=tiny", f"data.path={data}", f"out={out}", *small, *same, *settings]


VALIDATE = ["validate", "demos.zarr"]
EVAL = ["eval", "checkpoint=run", "env=tabletop", "out=results"]


def flip(here: Path) -> None:
    file = next(f for f in (here / "demos.zarr/data/action").iterdir() if f.name != "zarr.json")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def cut(here: Path) -> None:
    file = next(f for f in (here / "demos.zarr/data/rgb_front").iterdir() if f.name != "zarr.json")
    file.write_bytes(file.read_bytes()[:100])


def put(array: str, row: int, value: float) -> Callable[[Path], None]:
    def change(here: Path) -> None:
        zarr.open_group(here / "demos.zarr")[array][row] = value

    return change


def shorten(here: Path) -> None:
    array = zarr.open_group(here / "demos.zarr")["data/action"]
    array.resize((50, 4))


def edit(file: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(here: Path) -> None:
        values = json.loads((here / file).read_text())
        change(values)
        (here / file).write_text(json.dumps(values))

    return apply


POLICY = "run/checkpoints/step_00000001/policy"


def truncate(file: str) -> Callable[[Path], None]:
    return lambda here: (here / file).write_bytes((here / file).read_bytes()[:1000]) and None


def nothing(here: Path) -> None:
    pass


CASES = {
    "NaN in actions, validate": (
        put("data/action", 18, float("nan")),
        VALIDATE,
        1,
        "error: data/action, episode 1, step 4: dimension 0 is nan. Drop or repair the episode.",
    ),
    "NaN in actions, train": (
        put("data/action", 18, float("nan")),
        train_on(),
        2,
        "action[18, 0] is NaN or infinite. padpolicy validate names the episode.",
    ),
    "episode_ends not increasing, validate": (
        put("meta/episode_ends", 2, 28),
        VALIDATE,
        1,
        "error: meta/episode_ends: not increasing at episode 2: its end is 28, and the one before ends at 28.",
    ),
    "episode_ends not increasing, train": (
        put("meta/episode_ends", 2, 28),
        train_on(),
        2,
        "meta/episode_ends: not increasing at episode 2",
    ),
    "array too short, validate": (
        shorten,
        VALIDATE,
        1,
        "error: data/action: it has 50 rows; 56 are committed: the array is too short. Restore it from a copy",
    ),
    "array too short, train": (shorten, train_on(), 2, "data/action: it has 50 rows; 56 are committed"),
    "camera not recorded, validate": (
        edit("demos.zarr/zarr.json", lambda v: v["attributes"]["cameras"].update(wrist={"size": [32, 32]})),
        VALIDATE,
        1,
        "error: cameras/wrist: camera 'wrist' is declared but has neither rgb nor depth.",
    ),
    "camera not there, train": (
        nothing,
        train_on("data.cameras=[front,wrist]"),
        2,
        "data.cameras asks for camera 'wrist', which no source has; they have: rgb_front.",
    ),
    "flipped bit, validate": (flip, VALIDATE, 1, "stored and computed checksum do not match. Restore demos.zarr"),
    "flipped bit, train": (flip, train_on(), 2, "data/action: rows 0..55 (episode 0, step 0, to episode 3) cannot be"),
    "truncated chunk, validate": (cut, VALIDATE, 1, "error: data/rgb_front, episode 0, step 0: "),
    "truncated chunk, train": (cut, train_on(), 2, "data/rgb_front: rows 0.."),
    "truncated checkpoint, train": (
        truncate("run/checkpoints/step_00000001/training.safetensors"),
        train_on("training.steps=2", out="run"),
        2,
        "step_00000001 is damaged or cut short",
    ),
    "truncated checkpoint, eval": (truncate(f"{POLICY}/model.safetensors"), EVAL, 2, "policy is damaged or cut short"),
    "other action dimensions, train": (
        lambda here: make_store(here / "other.zarr", names=("x", "y", "z", "yaw", "gripper")) and None,
        train_on("training.steps=2", out="run", data="other.zarr"),
        2,
        "step_00000001 does not fit this network: ",
    ),
    "missing statistic, eval": (
        edit(
            f"{POLICY}/policy.json", lambda v: v["normalizer"]["stats"].update(leg=v["normalizer"]["stats"].pop("arm"))
        ),
        EVAL,
        2,
        "has no statistic of action for robot 'arm'; it has: leg (action, proprio).",
    ),
    "unknown policy, eval": (
        nothing,
        ["eval", "checkpoint=moon", "out=x"],
        2,
        "no policy at 'moon': expected a folder",
    ),
    "unknown setting, train": (
        nothing,
        ["train", "out=x", "modle.width=3"],
        2,
        "unknown setting 'modle.width'. Did you mean model.width",
    ),
    "unknown environment, eval": (
        nothing,
        [*EVAL[:2], "env=moon", "out=x"],
        2,
        "unknown 'env=moon'. configs/env/ has: ",
    ),
    "unknown environment id, collect": (
        nothing,
        ["collect", "env.id=padpolicy/Moon-v0", "out=x"],
        2,
        "no scripted expert is known for environment 'padpolicy/Moon-v0'; there is padpolicy/Tabletop-v0, padpolicy/M",
    ),
    "another renderer, train": (
        lambda here: make_store(here / "gl.zarr", robot=False, renderer="gl") and None,
        train_on("data.videos=[gl.zarr]"),
        2,
        "demos.zarr was drawn by renderer 'rays', gl.zarr by 'gl': their pixels differ.",
    ),
    "training diverges, train": (
        nothing,
        train_on("training.lr=1e30", "training.steps=4", "training.warmup_steps=0"),
        2,
        "The last checkpoint is sound; run `padpolicy validate` on the data, or lower training.lr.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(here: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    damage, arguments, expected_code, words = CASES[case]
    damage(here)
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    said = out if expected_code == 1 else err.splitlines()[-1]
    assert code == expected_code, err
    assert words in said
    assert "Traceback" not in out + err
    if code == 2:
        assert said.startswith("error: ")


def test_a_store_without_episodes_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a kill leaves that comes before the first episode is committed."""
    make_store(tmp_path / "empty.zarr", episodes=0)
    assert cli.main(["validate", str(tmp_path / "empty.zarr")]) == 0
    assert capsys.readouterr().out == "warning: n_episodes: the store holds no episode yet.\n"


@pytest.mark.parametrize("case", CASES)
def test_each_message_is_documented(case: str) -> None:
    """The words that the test looks for stand in the table (a message may go on behind them)."""
    assert CASES[case][3].removesuffix(".") in DOCUMENTED
