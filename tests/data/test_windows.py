"""Windows: exact rows, and the laws they keep for any episode."""

import numpy as np
import pytest

from padpolicy.data.windows import WindowSpec, window

SPEC = WindowSpec(obs_steps=2, chunk_steps=3, future_offsets_s=(0.2, 0.5), dt_s=0.1)


def test_rows_of_a_window_in_the_middle():
    parts = window(14, 10, 30, np.arange(40) * 0.1, SPEC)
    assert parts["obs"].rows.tolist() == [13, 14]
    assert parts["action"].rows.tolist() == [14, 15, 16]
    assert parts["future"].rows.tolist() == [16, 19]
    np.testing.assert_allclose(parts["future"].time_s, [0.2, 0.5], atol=1e-6)
    np.testing.assert_allclose(parts["obs"].time_s, [-0.1, 0], atol=1e-6)
    assert not any(part.is_pad.any() for part in parts.values())


def test_first_and_last_row_are_windows_too():
    first, last = (window(now, 10, 30, np.arange(40) * 0.1, SPEC) for now in (10, 29))
    assert first["obs"].rows.tolist() == [10, 10] and first["obs"].is_pad.tolist() == [True, False]
    assert last["action"].rows.tolist() == [29, 29, 29] and last["action"].is_pad.tolist() == [False, True, True]
    assert last["future"].rows.tolist() == [29, 29] and last["future"].is_pad.all()
    np.testing.assert_allclose(last["future"].time_s, [0.2, 0.5])


@pytest.mark.parametrize("fps", [3, 10, 25, 30, 60])
def test_seconds_mean_the_same_at_any_frame_rate(fps):
    part = window(10, 0, 200, np.arange(200) / fps, SPEC)["future"]
    assert np.abs(part.time_s - SPEC.future_offsets_s).max() <= 0.5 / fps + 1e-6 or fps == 3
    assert (part.rows > 10).all() and not part.is_pad.any()


def test_speed_stretches_the_recordings_seconds():
    time_s = np.arange(100) * 0.1
    part = window(10, 0, 100, time_s, SPEC, speed=2.0)["future"]
    assert part.rows.tolist() == [11, 12]  # 0.2 s and 0.5 s of the robot are 0.1 s and 0.25 s here
    np.testing.assert_allclose(part.time_s, [0.2, 0.4], atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_no_window_leaves_its_episode(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, 6)
    ends = np.cumsum(lengths)
    gaps = rng.uniform(0.02, 0.3, ends[-1]) if seed % 2 else np.full(ends[-1], 0.1)
    time_s = np.concatenate([np.cumsum(gaps[end - n : end]) for n, end in zip(lengths, ends, strict=True)])
    spec = WindowSpec(int(rng.integers(1, 4)), int(rng.integers(1, 9)), tuple(rng.uniform(0.05, 2, 3)), 0.1)
    for start, stop in zip(ends - lengths, ends, strict=True):
        for now in range(start, stop):
            parts = window(now, start, stop, time_s, spec)
            for part in parts.values():
                assert ((part.rows >= start) & (part.rows < stop)).all()
            assert parts["obs"].rows[-1] == now and not parts["obs"].is_pad[-1]
            assert (parts["obs"].rows <= now).all() and (parts["future"].rows >= now).all()
            assert (parts["future"].time_s > 0).all()
            assert parts["action"].is_pad.tolist() == [now + i >= stop for i in range(spec.chunk_steps)]


def test_a_row_outside_is_an_error():
    with pytest.raises(ValueError, match="outside of its episode"):
        window(30, 10, 30, np.arange(40) * 0.1, SPEC)
