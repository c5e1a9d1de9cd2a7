"""What a benchmark of many tasks needs: means over tasks and tiers, a named protocol, films worth a look, one page."""

import json
import re
from dataclasses import replace

import fakes
import numpy as np
import pytest

from padpolicy.config import EnvConfig, EvalConfig
from padpolicy.evaluation import episodes as lists
from padpolicy.evaluation.metrics import mean_of_rates, wilson
from padpolicy.evaluation.report import Evaluation, film_card, mean_rate, page, rates
from padpolicy.evaluation.rollout import EpisodeResult, EpisodeSpec, Film, Imagined
from padpolicy.evaluation.run import run_evaluation
from padpolicy.evaluation.vector import VectorEnv

ENV = EnvConfig(id="fakes:Fake-v0", robot="fake", renderer="rays", cameras=["front"])
TIERS = {"easy": 28, "medium": 11, "hard": 6, "very hard": 5}


def config(**changes):
    values = {"checkpoint": "fake", "out": "unused", "env": ENV, "env_workers": 0, "num_envs": 3, "exec_steps": 4}
    return EvalConfig(**(values | {"episodes_per_task": 3, "videos": 0, "seed": 7} | changes))


def result(task, success, seed=0, family="go"):
    return EpisodeResult(EpisodeSpec(task, seed), "go", family, success=success, terminated=success, steps=5)


# Means


def test_a_mean_of_equal_groups_is_the_rate_of_all_episodes():
    assert mean_of_rates([3, 9, 0], [10, 10, 10]) == pytest.approx((0.4, *wilson(12, 30)))
    assert mean_of_rates([7], [9]) == pytest.approx((7 / 9, *wilson(7, 9)))
    assert mean_of_rates([4, 4], [4, 4]) == (1.0, wilson(8, 8)[0], 1.0)
    assert mean_of_rates([0, 0], [4, 9])[:2] == (0.0, 0.0)


def test_tiers_count_alike_and_the_small_ones_widen_the_interval():
    n = [tasks * 10 for tasks in TIERS.values()]
    mean, low, high = mean_of_rates([280, 55, 0, 25], n)
    assert mean == 0.5  # of 1, 0.5, 0 and 0.5; the rate of all episodes is 0.72
    trials = 16 / (1 / 280 + 1 / 110 + 1 / 60 + 1 / 50)  # 324.3 of 500
    assert (low, high) == pytest.approx(wilson(trials / 2, trials))
    groups = {
        str(i): {"success_rate": r, "episodes": m} for i, (r, m) in enumerate(zip([1, 0.5, 0, 0.5], n, strict=True))
    }
    assert mean_rate(groups) == {"success_rate": 0.5, "ci95": [round(low, 4), round(high, 4)], "groups": 4}
    with pytest.raises(ValueError, match=r"got n=\[3, 0\]"):
        mean_of_rates([1, 0], [3, 0])


@pytest.mark.parametrize("n", [1, 10])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(n):
    trials = np.array(list(TIERS.values())) * n
    p = np.array([0.95, 0.8, 0.6, 0.4])
    draws = np.random.default_rng(0).binomial(trials, p, (2000, 4))
    held = [low <= p.mean() <= high for _, low, high in (mean_of_rates(k, trials) for k in draws.tolist())]
    assert 0.93 <= np.mean(held) <= 0.98


# Protocols


@pytest.fixture(scope="module")
def description():
    with VectorEnv(ENV, 1, 0) as envs:
        return envs.description


def test_a_protocol_survives_json_and_does_not_care_about_order(description):
    protocol = lists.protocol_of(config(), description)
    assert json.loads(json.dumps(protocol)) == protocol
    assert protocol["tasks"] == ["left", "right"] and protocol["renderer"] == "rays"
    assert (protocol["goals"], protocol["execution"], protocol["exec_steps"]) == ("random", "chunk", 4)
    assert (protocol["episodes_per_task"], protocol["first_seed"], protocol["max_steps"]) == (3, 7, 0)
    named = lists.protocol_of(config(tasks=["right", "left"], num_envs=1, steps=3, videos=5), description)
    assert named == protocol and re.fullmatch("[0-9a-f]{12}", protocol["fingerprint"])
    said = replace(ENV, options={"goals": "random"})
    assert lists.protocol_of(config(env=said), description) == protocol  # the default, said aloud


def test_the_protocols_limit_is_the_one_that_holds(description):
    described = replace(description, max_steps=20)
    assert lists.protocol_of(config(), described)["max_steps"] == 20
    limits = {  # asked for, the environment's own -> what ends an episode
        (0, None): 0,
        (20, None): 20,
        (0, 30): 30,
        (20, 30): 20,
        (50, 30): 30,
    }
    for (asked, own), holds in limits.items():
        with VectorEnv(replace(ENV, max_steps=asked), 1, 0) as envs:
            (env,) = envs._local.envs.values()
            env.unwrapped.step_limit = own
            assert envs._local.describe().max_steps == holds


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"env": replace(ENV, options={"goals": "fixed"})}, "goals: random, fixed"),
        ({"env": replace(ENV, options={"quality": "paper"})}, "options: {}, {'quality': 'paper'}"),
        ({"exec_steps": 2}, "exec_steps: 4, 2"),
        ({"tasks": ["left"]}, "tasks: ['left', 'right'], ['left']"),
        ({"paraphrase": "held_out"}, "paraphrase: canonical, held_out"),
        ({"episodes_per_task": 5}, "episodes_per_task: 3, 5"),
        ({"seed": 8}, "first_seed: 7, 8"),
    ],
)
def test_each_fact_makes_another_protocol(description, changes, said):
    a, b = (lists.protocol_of(cfg, description) for cfg in (config(), config(**changes)))
    assert lists.protocol_differences(a, b) == [said] and a["fingerprint"] != b["fingerprint"]
    assert lists.protocol_differences(a, a) == lists.protocol_differences(a, b, but=[said.split(":")[0]]) == []


def test_waypoints_are_another_protocol(description):
    chunk, waypoint = (
        lists.protocol_of(config(execution=execution), description) for execution in ("chunk", "waypoint")
    )
    assert waypoint["name"].endswith("waypoint execution")
    assert lists.protocol_differences(chunk, waypoint) == ["execution: chunk, waypoint"]


# Films


def test_films_are_half_failures_of_as_many_tasks_as_possible():
    outcomes = {"a": [1, 0, 0], "b": [1, 1, 0], "c": [0, 0, 0], "d": [1, 1, 1]}
    done = [result(task, bool(outcomes[task][i]), i) for i in range(3) for task in outcomes]
    picked = [(done[i].spec.task, done[i].success) for i in lists.to_film(done, 8)]
    assert picked[:4] == [("c", False), ("a", False), ("b", False), ("c", False)]
    assert [success for _, success in picked[4:]] == [True] * 4
    assert {task for task, _ in picked[4:]} == {"a", "b", "d"}
    assert sorted(lists.to_film(done, 99)) == list(range(12)) and lists.to_film(done, 0) == []
    assert [done[i].success for i in lists.to_film(done, 1)] == [False]
    good = [r for r in done if r.success]
    assert [good[i].spec.task for i in lists.to_film(good, 3)] == ["a", "b", "d"]


def test_failures_are_filmed_first_and_end_as_they_were_counted():
    ticks = []
    cfg = config(tasks=["left", "stay"], videos=4, num_envs=6)
    found = run_evaluation(cfg, fakes.FakePolicy(noise=3.0), lambda done, total, _: ticks.append((done, total)))
    outcomes = found.results["outcomes"]
    assert 0 < sum(outcomes["left"]) + sum(outcomes["stay"]) < 6
    assert [film.success for film in found.films] == sorted(film.success for film in found.films)
    assert not found.films[0].success
    for film in found.films:
        assert film.success == film.counted == bool(outcomes[film.task][film.seed - 7])
    assert ticks == [(i, 10) for i in range(1, 11)]  # six episodes, four of them once more


def test_a_film_shows_the_counted_episode_even_where_plans_depend_on_their_batch():
    class Rounding(fakes.FakePolicy):
        """Like rounding, only worse: one episode alone goes the other way."""

        def predict(self, obs, **options):
            prediction = super().predict(obs, **options)
            prediction.action *= -1.0 if len(obs) == 1 else 1.0
            return prediction

    found = run_evaluation(config(tasks=["left"], num_envs=3, videos=1), Rounding(noise=0.0))
    assert found.results["outcomes"]["left"] == [1, 1, 1]
    (film,) = found.films
    assert film.success and film.counted and 0 < film.seconds < 1.0
    assert film.imagined[0].shape == (fakes.SIZE, fakes.SIZE, 3)


@pytest.mark.parametrize(("dt_s", "every"), [(0.1, 1), (0.05, 1), (1 / 30, 2), (0.02, 3), (0.0125, 4)])
def test_films_of_fast_loops_play_in_real_time_at_20_frames_a_second(dt_s, every):
    seen = [np.full((8, 8, 3), step % 256, np.uint8) for step in range(502)]
    film = Film("front", seen, seen, [Imagined(step, np.full((1, 4, 4, 3), step, np.uint8)) for step in (0, 6, 200)])
    done = replace(result("left", True), steps=501, film=film)
    card = film_card(done, dt_s, [0.4], counted=True)
    assert card.fps == pytest.approx(1 / (every * dt_s)) and card.fps < 20.001
    shown = [int(picture[0, 0, 0]) for picture in card.pictures]
    assert shown[:-1] == [step % 256 for step in range(0, 501, every)] and shown[-1] == 501 % 256
    rest = round(card.fps)
    assert len(card.frames) == len(shown) + rest and card.frames[-1].shape == (8, 8 + 8 + 8, 3)
    assert (len(shown) - 1) / card.fps == pytest.approx(501 * dt_s, abs=every * dt_s)
    right = [int(frame[0, -1, 0]) for frame in card.frames]
    for i in range(len(shown) - 1):  # never before it was imagined
        assert right[i] == (0 if i * every < 6 else 6 if i * every < 200 else 200)


# The page


@pytest.fixture(scope="module")
def benchmark():
    """An evaluation whose outcomes are those of 50 tasks in four tiers, ten episodes each."""
    found = run_evaluation(config(), fakes.FakePolicy())
    done = []
    for tier, tasks in reversed(TIERS.items()):
        for i in range(tasks):
            done += [result(f"{tier.replace(' ', '-')}-{i:02d}", k < (7 * i) % 11, k, tier) for k in range(10)]
    tasks, families = rates(done, "task"), rates(done, "family")
    changes = {"tasks": tasks, "families": families, "family_of": {r.spec.task: r.family for r in done}}
    means = {"mean_by_task": mean_rate(tasks), "mean_by_family": mean_rate(families)}
    return Evaluation(found.results | changes | means)


def test_the_page_of_a_benchmark_goes_from_tiers_to_tasks_worst_first(benchmark):
    text = page(benchmark)
    assert "mean of 50 tasks" in text and "mean of 4 tiers" in text
    assert f"{100 * benchmark.results['mean_by_family']['success_rate']:.1f}" in text
    assert re.findall(r"<h3>([a-z ]+) <small>(\d+) tasks", text) == [(k, str(n)) for k, n in TIERS.items()]
    rows = re.findall(
        r'<div class="task"><span title="[a-z0-9-]+">([a-z-]+)-\d\d</span>.*?<span class="num">(\d+)</span>', text
    )
    assert [tier for tier, _ in rows] == [t.replace(" ", "-") for t, n in TIERS.items() for _ in range(n)]
    for tier in TIERS:
        percent = [int(p) for t, p in rows if t == tier.replace(" ", "-")]
        assert percent == sorted(percent)


def test_a_film_that_ended_otherwise_says_so():
    found = run_evaluation(config(videos=1, imagine=False), fakes.FakePolicy())
    assert "counted as" not in page(found)
    found.films[0].counted = False
    assert "counted as not done" in page(found)
