"""The conversion itself, whatever the format: whole or nothing, resumable, bounded, and clear where it stops."""

from __future__ import annotations

import numpy as np
import pytest

from padpolicy.cli import main
from padpolicy.data.convert import ConvertError, DamagedError, Options, convert, open_recording
from padpolicy.data.convert import ours as ours_format
from padpolicy.data.store import Store


def same(a, b, build):
    assert a.spec == b.spec and a.n_episodes == b.n_episodes
    for i in range(a.n_episodes):
        build.assert_same(a.episode(i), b.episode(i))


def test_ours_to_ours_is_the_same(new_store, tmp_path, build):
    done = convert(new_store(4), tmp_path / "copy.zarr")
    same(Store.open(tmp_path / "s.zarr"), Store.open(done.path), build)
    assert done.episodes == 4 and not done.skipped and [f.name for f in tmp_path.iterdir() if f.name[0] == "."] == []


def test_interrupted_anywhere_it_goes_on(new_store, tmp_path, build, monkeypatch):
    path = new_store(4)
    append = ours_format.OursWriter.append
    calls = []

    def die_at_the_third(writer, episode):
        calls.append(episode.id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        append(writer, episode)

    monkeypatch.setattr(ours_format.OursWriter, "append", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        convert(path, tmp_path / "copy.zarr")
    assert not (tmp_path / "copy.zarr").exists()
    convert(path, tmp_path / "copy.zarr")
    assert calls == ["e0", "e1", "e2", "e2", "e3"]
    same(Store.open(path), Store.open(tmp_path / "copy.zarr"), build)


def test_an_interrupted_conversion_of_something_else_is_not_gone_on_with(new_store, tmp_path, monkeypatch):
    one, other = new_store(4, "one.zarr"), new_store(2, "other.zarr", robot="another arm")

    def die(writer, episode):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ours_format.OursWriter, "append", die)
        with pytest.raises(KeyboardInterrupt):
            convert(one, tmp_path / "copy.zarr")
    convert(other, tmp_path / "copy.zarr")
    assert Store.open(tmp_path / "copy.zarr").robot == "another arm"


def test_a_damaged_episode_stops_it_or_is_left_out(new_store, tmp_path, build):
    path = new_store(4, length=2000)
    chunk = next(f for f in sorted((path / "data" / "rgb_front").glob("c.3.*")))
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(DamagedError, match=r"episode e\d: data/rgb_front: rows .* --skip-damaged"):
        convert(path, tmp_path / "copy.zarr")
    assert not (tmp_path / "copy.zarr").exists()
    done = convert(path, tmp_path / "copy.zarr", options=Options(skip_damaged=True))
    assert 1 <= done.episodes < 4 and done.episodes + len(done.skipped) == 4
    copy = Store.open(done.path)
    for i, name in enumerate(copy.meta["episode_id"]):
        build.assert_same(copy.episode(i), build.episode(int(name[1:]), build.spec(), 2000))


def test_optional_cameras_stay_absent(tmp_path, build):
    spec = build.spec(optional=["rgb_wrist"])
    with Store.create(tmp_path / "s.zarr", spec) as store:
        for i in range(3):
            episode = build.episode(i, spec)
            if i == 1:
                del episode.arrays["rgb_wrist"]
            store.append(episode)
    convert(tmp_path / "s.zarr", tmp_path / "copy.zarr")
    copy = Store.open(tmp_path / "copy.zarr")
    assert [copy.has("rgb_wrist", i) for i in range(3)] == [True, False, True]
    assert copy.has("rgb_front", 1) and "rgb_wrist" not in copy.episode(1).arrays
    np.testing.assert_array_equal(copy.episode(2).arrays["rgb_wrist"], build.episode(2, spec).arrays["rgb_wrist"])


def test_an_episode_that_cannot_be_written_is_left_out_as_well(new_store, tmp_path, monkeypatch):
    path, read = new_store(3), ours_format._StoredRows.__getitem__

    def with_nan(rows, span):
        values = read(rows, span)
        if values.dtype == np.float32 and rows._start == 0:
            values[0] = np.nan
        return values

    monkeypatch.setattr(ours_format._StoredRows, "__getitem__", with_nan)
    with pytest.raises(DamagedError, match="episode e0: .* NaN or infinite at step 0"):
        convert(path, tmp_path / "copy.zarr")
    done = convert(path, tmp_path / "copy.zarr", options=Options(skip_damaged=True))
    assert list(done.skipped) == ["e0"] and Store.open(done.path).n_episodes == 2


def test_two_episodes_of_one_name_are_refused(tmp_path, build):
    with Store.create(tmp_path / "s.zarr", build.spec()) as store:
        for _ in range(2):
            store.append(build.episode(1, build.spec()))
    with pytest.raises(ConvertError, match="two of its episodes are called e1; one of them would be lost"):
        convert(tmp_path / "s.zarr", tmp_path / "copy.zarr")


@pytest.mark.parametrize("optional", [[], ["rgb_front"]])
def test_only_some_cameras(new_store, tmp_path, optional):
    path = new_store(2, optional=optional)
    convert(path, tmp_path / "copy.zarr", options=Options(cameras=("wrist",)))
    assert sorted(Store.open(tmp_path / "copy.zarr").fields) == ["action", "proprio", "rgb_wrist"]


def test_what_cannot_be_converted_says_why(new_store, tmp_path):
    path = new_store(1)
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConvertError, match="taken exists"):
        convert(path, tmp_path / "taken")
    with pytest.raises(ConvertError, match="--to csv: expected one of ours"):
        convert(path, tmp_path / "x", to="csv")
    with pytest.raises(ConvertError, match="none of the recordings that padpolicy knows: padpolicy store; "):
        open_recording(tmp_path / "taken")
    with pytest.raises(ConvertError, match="say themselves what --fps would"):
        open_recording(path, Options(fps=10))
    with pytest.raises(ConvertError, match="--action-kind relative: expected one of absolute, delta"):
        Options(action_kind="relative")
    with pytest.raises(ConvertError, match="--image-size -1: at least 0"):
        Options(image_size=-1)


def test_the_command(new_store, tmp_path, capsys):
    path = new_store(2)
    assert main(["convert", str(path), str(tmp_path / "copy.zarr"), "--robot", "arm 2", "--cameras=front"]) == 0
    assert "Converted padpolicy store: 2 episodes. Next: padpolicy validate" in capsys.readouterr().out
    assert Store.open(tmp_path / "copy.zarr").robot == "arm 2"
    assert main(["convert", "--help"]) == 0
    assert "--skip-damaged leave episodes out that cannot be read" in " ".join(capsys.readouterr().out.split())
    for bad, message in (
        (["--fsp", "3"], "unknown option --fsp; there are --fps"),
        (["--fps"], "--fps needs a value"),
        (["--fps", "ten"], "--fps ten: expected a number"),
        ([str(path)], "got 3 paths"),
    ):
        assert main(["convert", str(path), str(tmp_path / "c2"), *bad]) == 2
        assert message in capsys.readouterr().err
