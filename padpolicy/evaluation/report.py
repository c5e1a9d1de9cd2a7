"""Results as `results.json`, rollouts as videos, and one HTML page about both.

The page is a single file beside a folder `videos`: no network, no framework; it reads the same from a disk or a server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from padpolicy.evaluation import charts, media
from padpolicy.evaluation.metrics import mean_of_rates, wilson
from padpolicy.evaluation.rollout import EpisodeResult, Film, Imagined

GAP = 8  # pixels between what happens and what is imagined
END_S = 1.0  # how long a video rests on its last frame
MAX_FPS = 20  # of videos: of faster control loops every n-th picture is kept
TIERS = ("easy", "medium", "hard", "very hard")  # families that are grades: in this order, and called tiers


@dataclass
class Strip:
    """One moment of a film: what was seen, what was imagined from there, and what then came."""

    now_s: float
    offset_s: float  # from now to the imagined moment
    happened_s: float  # when the last picture was taken: now_s + offset_s, or earlier, when the episode ended
    now: np.ndarray  # (H, W, 3) uint8 each
    imagined: np.ndarray
    happened: np.ndarray


@dataclass
class FilmCard:
    """A rollout on the page."""

    task: str
    family: str
    seed: int
    instruction: str
    success: bool
    counted: bool  # its success in the numbers; differs from `success` if it ended otherwise when filmed
    seconds: float
    fps: float
    pictures: list[np.ndarray]  # (H, W, 3) uint8, what happens
    imagined: dict[int, np.ndarray]  # index of a picture -> (h, w, 3) uint8, expected from then on; empty: nothing was
    imagined_s: float  # how far ahead these look; 0: there are none
    strip: Strip | None
    file: str = ""  # relative path of the video, once written

    @property
    def frames(self) -> list[np.ndarray]:
        """The video: left what happens; right, where the policy imagines, what it expects, as of its latest plan."""
        if not self.imagined:
            frames = list(self.pictures)
        else:
            side, frames = len(self.pictures[0]), []
            gap = np.full((side, GAP, 3), 20, np.uint8)
            for i, left in enumerate(self.pictures):
                if i in self.imagined or not i:
                    right = media.resized(self.imagined.get(i, self.imagined[min(self.imagined)]), side, side)
                frames.append(np.concatenate([left, gap, right], axis=1))
        return frames + [frames[-1]] * round(END_S * self.fps)


@dataclass
class Evaluation:
    """What an evaluation found: `results` goes to results.json, the films to the page."""

    results: dict[str, Any]
    films: list[FilmCard] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)  # (step, training loss), if it was just trained


def rates(results: Sequence[EpisodeResult], key: str) -> dict[str, dict[str, Any]]:
    """Success per `key` ("task" or "family"), in order of appearance: {name: {success_rate, ci95, episodes}}."""
    groups: dict[str, list[bool]] = {}
    for result in results:
        name = result.spec.task if key == "task" else result.family
        groups.setdefault(name, []).append(result.success)
    return {name: rate(successes) for name, successes in groups.items()}


def rate(successes: Sequence[bool]) -> dict[str, Any]:
    """A success rate with its interval: {success_rate, ci95, episodes}. The rate of no episodes is 0."""
    k, n = int(sum(successes)), len(successes)
    low, high = wilson(k, n)
    return {"success_rate": round(k / n, 4) if n else 0.0, "ci95": [round(low, 4), round(high, 4)], "episodes": n}


def mean_rate(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of the groups' success rates (see `rates`), each counting alike: {success_rate, ci95, groups}."""
    n = [group["episodes"] for group in groups.values()]
    if not n:
        return {"success_rate": 0.0, "ci95": [0.0, 1.0], "groups": 0}
    successes = [round(group["success_rate"] * group["episodes"]) for group in groups.values()]
    mean, low, high = mean_of_rates(successes, n)
    return {"success_rate": round(mean, 4), "ci95": [round(low, 4), round(high, 4)], "groups": len(n)}


def film_card(result: EpisodeResult, dt_s: float, offsets_s: Sequence[float], *, counted: bool) -> FilmCard:
    """What the page shows of a filmed episode. Of pictures more than MAX_FPS a second every n-th one is kept.

    Args:  counted: its success in the numbers.
    """
    assert result.film is not None  # only filmed episodes have a card
    film = result.film
    left = film.pictures or film.observed
    every = max(1, math.ceil(1 / (dt_s * MAX_FPS) - 1e-6))
    shown = sorted({*range(0, len(left), every), len(left) - 1})  # the last one is what the episode came to
    pictures = [left[i] if film.pictures else media.resized(left[i], 288, 288) for i in shown]
    imagined = {math.ceil(m.step / every): m.frames[-1] for m in film.imagined}
    return FilmCard(
        task=result.spec.task,
        family=result.family,
        seed=result.spec.seed,
        instruction=result.instruction,
        success=result.success,
        counted=counted,
        seconds=round(result.steps * dt_s, 2),
        fps=1 / (every * dt_s),
        pictures=pictures,
        imagined=imagined,
        imagined_s=float(offsets_s[-1]) if film.imagined else 0.0,
        strip=film_strip(film, dt_s, offsets_s),
    )


def film_strip(film: Film, dt_s: float, offsets_s: Sequence[float]) -> Strip | None:
    """The moment of a film after which most changed, looked at from what was seen, not from what was imagined.

    Where no plan was made early enough for its whole future to be filmed, the first one stands beside the last picture.
    """
    if not film.imagined or not offsets_s:
        return None
    ahead, last = round(offsets_s[-1] / dt_s), len(film.observed) - 1
    moments = [m for m in film.imagined if m.step + ahead <= last] or film.imagined[:1]

    def change(moment: Imagined) -> float:
        now, then = film.observed[moment.step], film.observed[min(moment.step + ahead, last)]
        return float(np.abs(now.astype(np.int16) - then).mean())

    moment = max(moments, key=change)
    then = min(moment.step + ahead, last)
    return Strip(
        now_s=round(moment.step * dt_s, 3),
        offset_s=float(offsets_s[-1]),
        happened_s=round(then * dt_s, 3),
        now=film.observed[moment.step],
        imagined=moment.frames[-1],
        happened=film.observed[then],
    )


def write_report(out: str | Path, evaluation: Evaluation, trained: Evaluation | None = None) -> dict[str, Any]:
    """Writes results.json, videos/ and index.html into the folder `out`.

    Args:     trained: a policy that was just trained here; its results stand under `trained`, its rollouts below.
    Returns:  what stands in results.json.
    """
    out = Path(out)
    (out / "videos").mkdir(parents=True, exist_ok=True)
    _write_videos(out, evaluation, "")
    results = dict(evaluation.results) | {"videos": _video_list(evaluation)}
    if trained is not None:
        _write_videos(out, trained, "trained-")
        results["trained"] = dict(trained.results) | {"videos": _video_list(trained)}
    text = json.dumps(_json_safe(results), indent=1, ensure_ascii=False, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    (out / "index.html").write_text(page(evaluation, trained), encoding="utf-8")
    return results


def _write_videos(out: Path, evaluation: Evaluation, prefix: str) -> None:
    for i, film in enumerate(evaluation.films):
        film.file = f"videos/{prefix}{i:02d}-{film.task}-{film.seed}.mp4"
        media.write_mp4(out / film.file, film.frames, film.fps)


def _video_list(evaluation: Evaluation) -> list[dict[str, Any]]:
    keys = ("file", "task", "seed", "instruction", "success", "counted", "seconds")
    return [{key: getattr(film, key) for key in keys} for film in evaluation.films]


def page(evaluation: Evaluation, trained: Evaluation | None = None) -> str:
    """The page as HTML text."""
    templates = media.templates(Path(__file__).parent)
    templates.filters |= {"pct": _percent, "seconds": _seconds, "words": _words, "value": _value}
    templates.filters |= {"by_family": _by_family, "group_word": _group_word, "plural": _plural}
    curve = charts.loss_curve(*zip(*trained.losses, strict=True)) if trained is not None and trained.losses else ""
    return templates.get_template("report.html.j2").render(shipped=evaluation, trained=trained, loss_curve=curve)


def _by_family(results: Mapping[str, Any]) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """Family -> its tasks with their rates, worst first; tiers in their order, other families in that of results."""
    families = sorted(results["families"], key=lambda family: TIERS.index(family) if family in TIERS else -1)
    by_rate = sorted(results["tasks"].items(), key=lambda task: (task[1]["success_rate"], task[0]))
    return {family: [task for task in by_rate if results["family_of"][task[0]] == family] for family in families}


def _group_word(results: Mapping[str, Any]) -> str:
    return "tier" if set(results["families"]) <= set(TIERS) else "family"


def _plural(word: str) -> str:
    return word[:-1] + "ies" if word.endswith("y") else word + "s"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}"


def _seconds(seconds: float) -> str:
    """A duration for people: 0.8 s, 12.4 s, 2 min 30 s."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value) if value != "" else "none"


def _json_safe(value: Any) -> Any:
    """Numbers that JSON does not have (NaN, infinity) become null; numpy scalars become numbers."""
    if isinstance(value, Mapping):
        return {str(key): _json_safe(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
