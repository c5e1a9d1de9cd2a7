"""Laws of the two pieces of closed-loop state."""

import fakes
import numpy as np
import pytest

from padpolicy.control.chunking import ChunkQueue, ObservationBuffer

DT = 0.1
STEPS = 60


def chunk(start: int, n: int = 8) -> np.ndarray:
    """Actions that name their own due step."""
    return np.arange(start, start + n, dtype=np.float32)[:, None]


class TestObservationBuffer:
    @pytest.mark.parametrize("obs_steps", [1, 2, 4, 40])
    @pytest.mark.parametrize("jitter", [0.0, 0.3])
    def test_replaying_an_episode_gives_the_windows_of_index_arithmetic(self, obs_steps, jitter):
        spec = fakes.spec(obs_steps=obs_steps)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 255, (STEPS, 16, 16, 3), np.uint8)
        buffer = ObservationBuffer.of(spec)
        for now in range(STEPS):
            time_s = now * DT + jitter * DT * rng.uniform(-0.5, 0.5)
            buffer.push(time_s, {"rgb_front": images[now], "proprio": np.array([now], np.float64)})
            rows = np.arange(now - obs_steps + 1, now + 1)
            sample = buffer.sample(spec, "go", "arm")
            np.testing.assert_array_equal(sample.fields["obs.rgb_front"], images[np.maximum(rows, 0)])
            np.testing.assert_array_equal(sample.fields["obs.proprio"][:, 0], np.maximum(rows, 0))
            np.testing.assert_array_equal(sample.is_pad["obs"], rows < 0)
            np.testing.assert_allclose(sample.time_s["obs"], (rows - now) * DT, atol=1e-7)
            assert sample.fields["obs.proprio"].dtype == np.float32
            assert (sample.text, sample.robot) == ("go", "arm")

    def test_what_is_not_seen_has_no_key(self):
        buffer = ObservationBuffer.of(fakes.spec())
        buffer.push(0.0, {"rgb_front": np.zeros((16, 16, 3), np.uint8), "rgb_unused": np.zeros(3)})
        sample = buffer.sample(fakes.spec(), None)
        assert set(sample.fields) == {"obs.rgb_front"} and sample.text is None

    def test_a_faster_camera_gives_the_frames_of_the_right_times(self):
        buffer = ObservationBuffer.of(fakes.spec(obs_steps=3))
        for i in range(31):
            buffer.push(i / 30, {"proprio": np.array([i], np.float32)})
        np.testing.assert_array_equal(
            buffer.sample(fakes.spec(obs_steps=3), "").fields["obs.proprio"][:, 0], [24, 27, 30]
        )

    def test_memory_is_bounded_and_still_long_enough(self):
        buffer = ObservationBuffer(keep_s=0.3)
        for i in range(1000):
            buffer.push(i * DT, {"proprio": np.array([i], np.float32)})
        assert len(buffer) <= 6
        np.testing.assert_array_equal(
            buffer.sample(fakes.spec(obs_steps=4), "").fields["obs.proprio"][:, 0], [996, 997, 998, 999]
        )

    def test_errors(self):
        buffer = ObservationBuffer(keep_s=0.5)
        with pytest.raises(ValueError, match="empty"):
            buffer.sample(fakes.spec(), "")
        buffer.push(1.0, {})
        for bad, message in ((1.0, "not after the newest"), (0.5, "not after"), (float("nan"), "not a finite")):
            with pytest.raises(ValueError, match=message):
                buffer.push(bad, {})
        with pytest.raises(ValueError, match="looks back 0.9 s"):
            buffer.sample(fakes.spec(obs_steps=10), "")
        buffer.clear()
        buffer.push(0.0, {})
        assert len(buffer) == 1


class TestChunkQueue:
    def test_actions_come_out_at_their_due_times(self):
        queue = ChunkQueue()
        queue.put(0.0, DT, chunk(0))
        rng = np.random.default_rng(0)
        for step in range(8):
            time_s = (step + rng.uniform(-0.45, 0.45)) * DT
            assert queue.at(time_s).item() == step
        assert queue.at(0.8) is None and queue.dropped == 0

    def test_nothing_before_its_time_and_nothing_twice(self):
        queue = ChunkQueue()
        queue.put(1.0, DT, chunk(10))
        assert queue.at(0.9) is None
        assert queue.at(1.0).item() == 10
        assert queue.at(1.0) is None

    def test_receding_horizon_executes_every_step_once(self):
        queue, done = ChunkQueue(), []
        for start in range(0, 40, 5):
            queue.put(start * DT, DT, chunk(start))
            done += [queue.at((start + i) * DT).item() for i in range(5)]
        assert done == list(range(40))

    def test_the_newest_plan_wins_and_what_ran_does_not_run_again(self):
        queue = ChunkQueue()
        queue.put(0.0, DT, chunk(0))
        assert [queue.at(i * DT).item() for i in range(4)] == [0, 1, 2, 3]
        assert queue.put(0.2, DT, chunk(102))  # observed at step 2, arrives when step 3 has run
        assert [queue.at(i * DT).item() for i in range(4, 10)] == [104, 105, 106, 107, 108, 109]
        assert queue.dropped == 2

    def test_late_actions_are_dropped_not_caught_up(self):
        queue = ChunkQueue()
        queue.put(0.0, DT, chunk(0))
        assert queue.at(0.0).item() == 0
        assert queue.at(0.5).item() == 5
        assert queue.dropped == 4
        assert queue.at(5.0) is None and queue.dropped == 6

    def test_a_plan_overtaken_on_the_way_is_ignored(self):
        queue = ChunkQueue()
        queue.put(0.3, DT, chunk(203))
        assert not queue.put(0.1, DT, chunk(101))
        assert queue.at(0.3).item() == 203

    def test_a_plan_for_later_leaves_the_time_before_it(self):
        queue = ChunkQueue()
        queue.put(0.0, DT, chunk(0))
        queue.put(0.3, DT, chunk(103))
        assert [queue.at(i * DT).item() for i in range(6)] == [0, 1, 2, 103, 104, 105]

    def test_errors(self):
        queue = ChunkQueue()
        with pytest.raises(ValueError, match=r"got shape \(3,\)"):
            queue.put(0.0, DT, np.zeros(3))
        with pytest.raises(ValueError, match="dt_s=0"):
            queue.put(0.0, 0.0, chunk(0))
        queue.put(0.0, DT, chunk(0))
        with pytest.raises(ValueError, match="2 action dims, the plan before had 1"):
            queue.put(1.0, DT, np.zeros((3, 2)))
        queue.clear()
        assert queue.at(0.0) is None and queue.remaining(0.0) == 0
