"""A policy that knows its world imagines it; one that does not is found out."""

import fakes
import numpy as np
import pytest

from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Episode, Store, StoreSpec
from padpolicy.evaluation.imagination import bootstrap, imagination_report, r2_per_dim


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two episodes that go left and two that go right, from distinct places."""
    path = tmp_path_factory.mktemp("imagination") / "held_out.zarr"
    camera = {"size": [fakes.SIZE, fakes.SIZE], "intrinsics": None, "extrinsics": None}
    spec = StoreSpec(
        cameras={"front": camera},
        depth_cameras=["front"],
        proprio={"names": ["x"]},
        action=ActionSpec("delta", ["dx"], 0.1),
        robot="fake",
        renderer="rays",
        dt_s=0.1,
        tasks=[{"name": name, "paraphrases": [fakes.WORDS[name]], "family": "go"} for name in ("left", "right")],
    )
    with Store.create(path, spec) as store:
        for task, start in (("left", 0.9), ("right", -0.9), ("left", 0.35), ("right", -0.3)):
            action = np.full((9, 1), -1.0 if task == "left" else 1.0, np.float32)
            x = start + fakes.SPEED * np.arange(9) * action[0, 0]
            arrays = {
                "rgb_front": np.stack([fakes.draw(v) for v in x]),
                "depth_front": np.full((9, fakes.SIZE, fakes.SIZE), 1000, np.uint16),
                "proprio": x[:, None].astype(np.float32),
                "action": action,
                "timestamp": np.arange(9) * 0.1,
            }
            store.append(Episode(arrays, task=task))
    return path


def test_a_policy_that_knows_its_world(store):
    report = imagination_report(fakes.FakePolicy(noise=0.0), store, samples=8)
    assert (report["episodes"], report["samples"], report["candidates"]) == (4, 8, {"min": 4, "max": 4})
    assert report["retrieval"]["share"] == 1.0 and report["retrieval"]["n"] == 8
    assert report["static_psnr"]["gap_db"] == pytest.approx(
        report["static_psnr"]["reconstruction_db"] - report["static_psnr"]["imagined_db"]
    )
    assert report["forward"]["error_ratio"] > 2  # the pixel grid leaves some error under the own actions
    assert report["moving"]["error_ratio"] < 0.5  # than a frame in which nothing moves
    assert report["inverse"]["r2"] > 0.95
    low, high = report["inverse"]["ci95"]
    assert low <= report["inverse"]["r2"] <= high
    assert [item["title"] for item in report["page"]["items"]][0] == "finds its own future"


def test_a_policy_that_ignores_actions_and_pictures_is_found_out(store):
    class Blank(fakes.FakePolicy):
        def predict(self, obs, *, mode="policy", **options):
            prediction = super().predict(obs, mode=mode, **options)
            prediction.future_latent = {cam: 0 * latent for cam, latent in prediction.future_latent.items()}
            if mode == "inverse":
                prediction.action = 0 * prediction.action
            return prediction

    report = imagination_report(Blank(), store, samples=8)
    assert report["retrieval"]["share"] <= 0.5
    assert report["forward"]["error_ratio"] == pytest.approx(1.0)
    assert report["inverse"]["r2"] == pytest.approx(0.0, abs=0.02)
    assert report["static_psnr"]["gap_db"] > 10


@pytest.mark.parametrize("unlearned", [("forward",), ("inverse",), ("forward", "inverse")])
def test_modes_that_were_not_learned_are_not_measured(store, unlearned):
    class Partial(fakes.FakePolicy):
        def predict(self, obs, *, mode="policy", **options):
            assert mode not in unlearned
            return super().predict(obs, mode=mode, **options)

    whole, policy = fakes.FakePolicy(noise=0.0), Partial(noise=0.0)
    policy.unlearned = unlearned
    expected, report = (imagination_report(p, store, samples=8) for p in (whole, policy))
    assert set(expected) - set(report) == set(unlearned)
    assert len(report["page"]["items"]) == 5 - len(unlearned)
    assert report == {key: expected[key] for key in report} | {"page": report["page"]}


def test_what_cannot_be_measured_is_said(store):
    with pytest.raises(ValueError, match="never learned to imagine"):
        imagination_report(fakes.FakePolicy(future_cameras=[]), store)
    with pytest.raises(ValueError, match="actions are 0.1 s apart, and the policy's are 0.05 s apart"):
        imagination_report(fakes.FakePolicy(dt_s=0.05), store)
    with pytest.raises(ValueError, match="last longer than the 5 s"):
        imagination_report(fakes.FakePolicy(future_offsets_s=[5.0]), store)


def test_r2_exact():
    truth = np.array([[[0.0, 1.0], [1.0, 1.0]], [[2.0, 1.0], [3.0, np.nan]]])
    read = np.array([[[0.5, 9.0], [1.0, 9.0]], [[1.5, 9.0], [7.0, 7.0]]])
    # The row with a NaN does not count: truth 0, 1, 2 and errors .5, 0, .5; the second dim never varies.
    values = r2_per_dim(truth, read)
    assert values[0] == pytest.approx(1 - 0.5 / 2.0) and np.isnan(values[1])


def test_bootstrap_is_repeatable_and_covers():
    values = np.arange(100.0)
    alone = np.arange(100)
    interval = bootstrap(lambda rows: values[rows].mean(), alone, 3)
    assert interval == bootstrap(lambda rows: values[rows].mean(), alone, 3)
    assert interval[0] < 49.5 < interval[1] and interval[1] - interval[0] == pytest.approx(11.3, abs=1.0)


def test_moments_of_one_episode_count_as_one():
    values = np.repeat(np.arange(100.0), 9)
    alone = bootstrap(lambda rows: values[rows].mean(), np.arange(900), 3)
    together = bootstrap(lambda rows: values[rows].mean(), np.repeat(np.arange(100), 9), 3)
    assert (together[1] - together[0]) / (alone[1] - alone[0]) == pytest.approx(3.0, rel=0.1)
