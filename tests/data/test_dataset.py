"""Sources, mixtures and streams: what a batch holds, and that it is a function of (seed, step, index)."""

import dataclasses

import numpy as np
import pytest
import torch

from padpolicy.config import DataConfig
from padpolicy.data.dataset import BatchStream, Mixture, Source, loader, open_mixture, open_source
from padpolicy.data.latents import encode_store
from padpolicy.data.store import Store, StoreError


def make_cfg(**changes) -> DataConfig:
    values = {"image_size": 16, "chunk_steps": 4, "future_offsets_s": [0.4], "val_fraction": 0.0}
    return DataConfig(**values | changes)


@pytest.fixture
def robot(build, tmp_path):
    """Six demonstrations. `executed` is `action` plus 0.5."""
    spec = build.spec(executed=True)
    with Store.create(tmp_path / "robot.zarr", spec) as store:
        for i in range(6):
            episode = dataclasses.replace(build.episode(i, spec), success=True)
            episode.arrays["executed"] = episode.arrays["action"] + np.float32(0.5)
            store.append(episode)
    return store.path


@pytest.fixture
def video(new_store):
    return new_store(3, name="video.zarr", action=None, proprio=None, depth_cameras=[], robot="")


def assert_equal(a, b) -> None:
    assert (
        a.text == b.text
        and a.robot == b.robot
        and torch.equal(a.index, b.index)
        and (a.seed, a.step) == (b.seed, b.step)
    )
    for part in ("fields", "has", "is_pad", "time_s"):
        one, other = getattr(a, part), getattr(b, part)
        assert set(one) == set(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_sample_is_the_rows_of_its_window(robot, build):
    source = open_source(robot, make_cfg(obs_steps=2))
    first = build.episode(0, build.spec())
    n = len(first)
    sample = source.sample(n - 2, np.random.default_rng(0))  # the last window but one of episode 0
    np.testing.assert_array_equal(sample.fields["obs.rgb_front"], first.arrays["rgb_front"][n - 3 : n - 1])
    np.testing.assert_array_equal(sample.fields["obs.depth_front"], first.arrays["depth_front"][n - 3 : n - 1])
    np.testing.assert_array_equal(sample.fields["obs.proprio"], first.arrays["proprio"][n - 3 : n - 1])
    np.testing.assert_array_equal(sample.fields["future.rgb_front"], first.arrays["rgb_front"][n - 1 :])
    action = first.arrays["action"]
    np.testing.assert_array_equal(sample.fields["action"][:2], action[n - 2 :])
    np.testing.assert_array_equal(sample.fields["action"][2:], [[0, 0, 0, action[-1, 3]]] * 2)  # hold
    executed = action + np.float32(0.5)
    np.testing.assert_array_equal(sample.fields["executed"][:2], executed[n - 2 :])
    np.testing.assert_array_equal(sample.fields["executed"][2:], [[0, 0, 0, executed[-1, 3]]] * 2)
    assert sample.is_pad["action"].tolist() == [False, False, True, True]
    assert sample.is_pad["future"].tolist() == [True]
    np.testing.assert_allclose(sample.time_s["action"], [0, 0.1, 0.2, 0.3], atol=1e-6)
    assert sample.robot == "arm" and sample.text in ("push the cube", "shove the cube")


def test_frames_behind_the_end_can_be_the_last_one(robot):
    """As targets, at the times asked for; those before the end stay as they are, and so do actions."""
    held, plain = (open_source(robot, make_cfg(hold_future=hold)) for hold in (True, False))
    for i in range(held.n_windows()):
        a, b = (source.sample(i, np.random.default_rng(0)) for source in (held, plain))
        assert not a.is_pad["future"].any()
        assert all(np.array_equal(a.fields[name], b.fields[name]) for name in b.fields)
        assert np.array_equal(a.time_s["future"], b.time_s["future"])
        assert np.array_equal(a.is_pad["action"], b.is_pad["action"])
    lost = np.mean([plain.sample(i, np.random.default_rng(0)).is_pad["future"].all() for i in range(plain.n_windows())])
    assert plain.without_future() == lost > 0 and held.without_future() == 0
    watched = open_source(robot, make_cfg(hold_future=True), action_free=True)
    assert watched.sample(watched.n_windows() - 1, np.random.default_rng(0)).is_pad["future"].all()


def test_every_step_is_a_window_and_the_wordings_all_occur(robot):
    source = open_source(robot, make_cfg())
    assert source.n_windows() == source.store.n_rows
    rng = np.random.default_rng(0)
    assert {source.sample(0, rng).text for _ in range(30)} == {"push the cube", "shove the cube"}


def test_action_free_sources_lack_actions_whatever_their_store_has(robot, video):
    for path in (robot, video):
        source = open_source(path, make_cfg(), action_free=True)
        sample = source.sample(0, np.random.default_rng(0))
        assert not {"action", "executed", "obs.proprio"} & set(sample.fields) and sample.robot == ""
        assert "obs.rgb_front" in sample.fields and "action" not in sample.time_s


def test_mixed_batches_say_who_has_what(robot, video):
    cfg = make_cfg(path=str(robot), videos=[str(video)], video_ratio=0.5)
    batch = BatchStream(open_mixture(cfg), 16, seed=0)[0]
    is_video = torch.tensor([name == "" for name in batch.robot])
    assert is_video.any() and not is_video.all()
    assert torch.equal(batch.has["action"], ~is_video) and torch.equal(batch.has["obs.depth_front"], ~is_video)
    assert batch.has["obs.rgb_wrist"].all() and batch.is_pad["action"][is_video].all()
    assert batch.fields["action"].shape == (16, 4, 4) and batch.fields["obs.rgb_front"].dtype == torch.uint8


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_ratio_is_the_share_of_action_free_samples(robot, video, ratio):
    mixture = open_mixture(make_cfg(path=str(robot), videos=[str(video)], video_ratio=ratio))
    rng, n = np.random.default_rng(0), 600
    share = np.mean([mixture.sample(rng).robot == "" for _ in range(n)])
    assert abs(share - ratio) < 3.5 * np.sqrt(ratio * (1 - ratio) / n) + 1e-9


def test_with_one_kind_of_source_the_ratio_does_not_matter(robot, video):
    alone = Mixture([open_source(robot, make_cfg())], ratio=0.9)
    assert alone.sample(np.random.default_rng(0)).robot == "arm"
    free = open_mixture(make_cfg(videos=[str(video)], video_ratio=0.1, depth_cameras=[], future_depth_cameras=[]))
    assert free.sample(np.random.default_rng(0)).robot == "" and free.action_spec is None


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_the_ranks_are_the_global_batch(robot, video, world):
    mixture = open_mixture(make_cfg(path=str(robot), videos=[str(video)]))
    whole = BatchStream(mixture, 8, seed=3)[5]
    offset = 0
    for rank in range(world):
        part = BatchStream(mixture, 8, seed=3, rank=rank, world=world)[5]
        rows = torch.arange(offset, offset + len(part))
        offset += len(part)
        assert torch.equal(part.index, rows) and part.text == whole.select(rows).text
        for name, tensor in part.fields.items():
            has = part.has[name]
            assert torch.equal(has, whole.has[name][rows])
            assert torch.equal(tensor[has], whole.fields[name][rows][has])
    assert offset == 8


def test_resuming_is_asking_for_the_next_step(robot):
    cfg = make_cfg(path=str(robot))
    straight = list(loader(BatchStream(open_mixture(cfg), 4, seed=1), 0, 4))
    resumed = list(loader(BatchStream(open_mixture(cfg), 4, seed=1), 2, 4))
    for a, b in zip(straight[2:], resumed, strict=True):
        assert_equal(a, b)
    other = BatchStream(open_mixture(cfg), 4, seed=2)[0]
    assert not torch.equal(other.fields["action"], straight[0].fields["action"])


def test_worker_processes_give_the_same_batches(robot):
    stream = BatchStream(open_mixture(make_cfg(path=str(robot))), 4, seed=1)
    for a, b in zip(loader(stream, 0, 3), loader(stream, 0, 3, workers=1), strict=True):
        assert_equal(a, b)


def test_validation_episodes_are_held_out_and_stay_held_out(new_store, build):
    path = new_store(20, all_succeed=True)
    source = open_source(path, make_cfg(val_fraction=0.3))
    train, val = (set(source.rows[split].tolist()) for split in ("train", "val"))
    assert not train & val and len(train | val) == source.store.n_rows and val and train
    for i in range(20):
        start, stop = source.store.bounds(i)
        assert len(set(range(start, stop)) & val) in (0, stop - start)
    with Store.open(path, "a") as store:
        store.append(build.episode(20, build.spec()))
    again = open_source(path, make_cfg(val_fraction=0.3))
    assert set(again.rows["val"].tolist()) & set(range(source.store.n_rows)) == val
    assert BatchStream(Mixture([source]), 4, seed=0, split="val")[0].fields["action"].shape == (4, 4, 4)


def test_a_small_store_still_has_one_validation_episode(robot):
    assert open_source(robot, make_cfg(val_fraction=1e-9)).n_windows("val") > 0
    with pytest.raises(StoreError, match="no source has a val window"):
        open_mixture(make_cfg(path=str(robot))).sample(np.random.default_rng(0), "val")


def test_failures_are_watched_but_not_imitated(new_store, build):
    path = new_store(6, name="mixed.zarr")
    store = Store.open(path)
    failed = {row for i in (0, 3) for row in range(*store.bounds(i))}
    imitated = open_source(path, make_cfg())
    assert set(imitated.rows["train"]) == set(range(store.n_rows)) - failed
    assert open_source(path, make_cfg(), action_free=True).n_windows() == store.n_rows
    with pytest.raises(StoreError, match="not one of its 1 episodes succeeded"):
        open_source(new_store(1, name="failed.zarr"), make_cfg())


def test_a_store_without_actions_is_no_robot_data(video):
    with pytest.raises(StoreError, match=r"has no actions, so no policy comes of it\. Give it as data\.videos"):
        open_mixture(make_cfg(path=str(video)))


def test_a_chunk_that_is_relative_to_its_start_is_refused(new_store, build):
    action = dataclasses.replace(build.spec().action, kind="relative_to_chunk_start")
    with pytest.raises(StoreError, match="relative_to_chunk_start.*Store them as absolute or delta"):
        open_source(new_store(2, name="relative.zarr", action=action), make_cfg())


def test_frames_of_another_size_are_letterboxed(robot):
    sample = open_source(robot, make_cfg(image_size=8)).sample(0, np.random.default_rng(0))
    assert sample.fields["obs.rgb_front"].shape == (1, 8, 8, 3)
    assert sample.fields["obs.depth_front"].shape == (1, 8, 8)


def test_a_camera_that_no_source_has_is_an_error(robot):
    with pytest.raises(
        StoreError, match="data.cameras asks for camera 'top', which no source has; they have: rgb_front"
    ):
        open_mixture(make_cfg(path=str(robot), cameras=["front", "top"]))
    with pytest.raises(StoreError, match="data.depth_cameras asks for camera 'wrist'"):
        open_mixture(make_cfg(path=str(robot), depth_cameras=["wrist"]))


def test_a_robot_must_have_the_cameras_it_looks_through_itself(robot, build, new_store):
    camera = build.spec().cameras["front"]
    film = new_store(
        2, name="film.zarr", action=None, proprio=None, depth_cameras=[], cameras={"top": camera}, robot=""
    )
    with pytest.raises(StoreError, match="data.cameras asks for camera 'top', which no source has; they have: rgb_fro"):
        open_mixture(make_cfg(path=str(robot), videos=[str(film)], cameras=["front", "top"]))
    with pytest.raises(StoreError, match=r"film.zarr has no actions and none of the cameras that are imagined"):
        open_mixture(make_cfg(path=str(robot), videos=[str(film)]))
    open_mixture(make_cfg(path=str(robot), videos=[str(film)], future_cameras=["front", "top"]))


def test_another_renderer_is_an_error_and_real_pictures_are_none(robot, new_store):
    gl = new_store(1, name="gl.zarr", renderer="gl")
    with pytest.raises(StoreError, match="drawn by renderer 'rays', .* by 'gl'"):
        open_mixture(make_cfg(path=str(robot), videos=[str(gl)]))
    real = new_store(1, name="real.zarr", renderer="")
    assert open_mixture(make_cfg(path=str(robot), videos=[str(real)])).renderer == "rays"


def test_another_control_rate_is_an_error(robot):
    with pytest.raises(StoreError, match="actions are 0.1 s apart, data.dt_s is 0.05"):
        open_source(robot, make_cfg(dt_s=0.05))


def test_the_normaliser_is_fitted_on_training_rows_only(robot):
    mixture = open_mixture(make_cfg(path=str(robot), val_fraction=0.3))
    (source,) = mixture.sources
    rows = source.store.rows("action", source.rows["train"])
    entry = mixture.fit_normalizer().stats["arm"]["action"]
    low, high = np.quantile(rows[:, 1], [0.01, 0.99])
    assert entry["center"][1] == pytest.approx((low + high) / 2)
    assert set(mixture.fit_normalizer().stats["arm"]) == {"action", "proprio"}
    assert mixture.proprio_names == ["x", "y", "sin_yaw"]


class Halver:
    """An encoder whose latents can be checked by hand: the top left pixel, and how often it was asked."""

    fingerprint = "halver-1"

    def __init__(self) -> None:
        self.frames = 0

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        self.frames += len(rgb)
        return rgb[:, ::8, ::8].permute(0, 3, 1, 2).float() / 128


def test_cached_latents_stand_in_for_rgb(robot):
    encoder, cfg = Halver(), make_cfg(path=str(robot))
    encode_store(robot, encoder, ["front"])
    plain = open_mixture(cfg).sources[0].sample(3, np.random.default_rng(0))
    sample = open_mixture(cfg, encoder.fingerprint).sources[0].sample(3, np.random.default_rng(0))
    assert "obs.rgb_front" not in sample.fields and "obs.rgb_wrist" in sample.fields
    assert sample.fields["obs.latent_front"].dtype == np.float16
    expected = encoder.encode(torch.from_numpy(plain.fields["future.rgb_front"])).numpy()
    np.testing.assert_array_equal(sample.fields["future.latent_front"], expected)
    mixed = open_mixture(cfg, encoder.fingerprint, pixels=True).sources[0]
    assert {"obs.rgb_front", "future.latent_front"} <= mixed.fields
    assert "obs.rgb_front" in open_mixture(cfg, "another encoder").sources[0].fields
    small = make_cfg(path=str(robot), image_size=8)  # latents of other pictures than the samples have
    assert "obs.rgb_front" in open_mixture(small, encoder.fingerprint).sources[0].fields


def test_sources_can_be_told_apart_by_camera_names(robot):
    source = Source(Store.open(robot), make_cfg(cameras=["top"], future_cameras=[]), camera_names={"top": "wrist"})
    assert "obs.rgb_top" in source.fields


def test_the_weight_of_a_source_is_how_often_its_windows_come(new_store, build):
    one = new_store(4, "one.zarr", length=20, all_succeed=True, robot="one")
    two = new_store(4, "two.zarr", length=20, all_succeed=True, robot="two")
    mixture = open_mixture(make_cfg(path=str(one), more=[f"{two}@3"]))
    robots = [mixture.sample(np.random.default_rng(i)).robot for i in range(400)]
    assert abs(robots.count("two") / 400 - 0.75) < 0.07
    assert set(mixture.fit_normalizer().stats) == {"one", "two"}
    with pytest.raises(StoreError, match="the weight behind @ is -1"):
        open_mixture(make_cfg(path=f"{one}@-1"))
    with pytest.raises(StoreError, match=r"data.more=.*video.zarr has no actions"):
        free = new_store(2, "video.zarr", action=None, proprio=None, depth_cameras=[], robot="")
        open_mixture(make_cfg(path=str(one), more=[str(free)]))


def test_robots_that_feel_different_things_do_not_mix(new_store):
    one = new_store(2, "one.zarr", all_succeed=True)
    other = new_store(2, "two.zarr", all_succeed=True, proprio={"names": ["a", "b", "c"], "unit": "m"})
    with pytest.raises(StoreError, match=r"has the proprioception \['x', 'y', 'sin_yaw'\], .* has \['a', 'b', 'c'\]"):
        open_mixture(make_cfg(path=str(one), more=[str(other)]))


@pytest.mark.parametrize("latents", [False, True])
def test_a_camera_that_an_episode_lacks_is_absent_in_its_samples(tmp_path, build, latents):
    spec = build.spec(optional=["rgb_wrist", "proprio"])
    with Store.create(tmp_path / "s.zarr", spec) as store:
        for i in range(4):
            episode = dataclasses.replace(build.episode(i, spec, length=10), success=True)
            if i == 1:
                del episode.arrays["rgb_wrist"], episode.arrays["proprio"]
            store.append(episode)

    class Encoder:
        fingerprint = "f"

        def encode(self, rgb):
            return rgb[:, ::4, ::4].permute(0, 3, 1, 2).float()

    if latents:
        encode_store(tmp_path / "s.zarr", Encoder(), ["front", "wrist"], 16)
    source = open_source(tmp_path / "s.zarr", make_cfg(), fingerprint="f" if latents else "")
    wrist = "obs.latent_wrist" if latents else "obs.rgb_wrist"
    for i in range(4):
        sample = source.sample(10 * i + 3, np.random.default_rng(0))
        assert (wrist in sample.fields) == ("obs.proprio" in sample.fields) == (i != 1)
    felt = np.concatenate([build.episode(i, spec, 10).arrays["proprio"] for i in (0, 2, 3)])
    np.testing.assert_array_equal(source.store.rows("proprio", source.rows_with("proprio")), felt)
    assert len(source.rows_with("action")) == 40
    Mixture([source]).fit_normalizer()


@pytest.mark.parametrize("succeeded", [(True, False), (False, True), (True, True, False)])
def test_failures_do_not_use_up_the_training_episodes(tmp_path, build, succeeded):
    with Store.create(tmp_path / "s.zarr", build.spec()) as store:
        for i, success in enumerate(succeeded):
            store.append(dataclasses.replace(build.episode(i, build.spec(), 5), success=success))
    rows = open_source(tmp_path / "s.zarr", make_cfg(val_fraction=0.02)).rows
    assert len(rows["train"]) >= 5 and len(rows["val"]) == (5 if sum(succeeded) > 1 else 0)
