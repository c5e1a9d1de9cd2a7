"""Does the policy imagine what really comes? Up to five measurements on held-out episodes of a store.

Moments are taken in groups: one family, one step, as many episodes as there are (at most 32). So a retrieved future is
compared with futures that differ only by scene, instruction and action, never by how far the task has come. The present
itself, handed in as the future, is measured beside: what it achieves, a policy need not imagine anything for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from padpolicy import draws
from padpolicy.batch import Batch, collate
from padpolicy.control.chunking import ObservationBuffer
from padpolicy.data.actions import ActionSpec, hold_action
from padpolicy.data.letterbox import letterbox
from padpolicy.data.store import Store
from padpolicy.sample import Sample

if TYPE_CHECKING:
    from padpolicy.policy import Policy
    from padpolicy.spec import PolicySpec

GROUP = 32  # the true future and 31 others
EVERY = 4  # steps between moments of an episode
STILL = 6  # a pixel that changed by no more than this, of 255 in any channel, has not moved
RESAMPLES = 1000  # of the bootstrap over moments


@dataclass
class _Group:
    """Moments that may be compared with one another."""

    samples: list[Sample]
    now: np.ndarray  # (N, H, W, 3) uint8 of the first imagined camera
    then: dict[str, np.ndarray]  # imagined camera -> (N, F, H, W, 3) uint8, what came at each offset
    actions: np.ndarray  # (N, T, A) float32 as executed, held after the episode's end
    real: np.ndarray  # (N, T) bool: the action is one of the episode, and before the last imagined frame
    episode: np.ndarray  # (N,) int


def imagination_report(
    policy: Policy,
    store_path: str | Path,
    *,
    samples: int = 256,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
) -> dict[str, Any]:
    """Measures imagined futures against the real ones.

    Args:     samples: about how many moments are looked at.
              steps: network calls; None: the policy's own number. In one, a policy that says what is clean imagines the
                  mean of what may come.
              sampler, guidance: see `Policy.predict`.
    Returns:  retrieval (share of moments whose imagined frame is nearest, by latent distance, to its own future
              among `candidates`; and of the present's), static_psnr (dB of imagined pixels that do not move, and of
              the encoder's own reconstruction), moving (error on moving pixels divided by that of the present),
              forward (the same error under another episode's actions divided by that under the own ones), inverse (R2
              of actions read off two frames; and of those it would plan itself), each with ci95 over episodes;
              episodes, samples; page (the same in words, for the report). "forward" and "inverse" are there if the
              policy has learned those modes.
    Raises:   ValueError if the policy imagines nothing, the store's actions are not as far apart as the policy's, or no
              two episodes of a family that have all that it looks at are long enough.
    """
    spec = policy.spec
    if not policy.imagines_in:
        raise ValueError(
            "imagination=STORE: this policy never learned to imagine (data.future_cameras and diffusion.modes.joint)."
        )
    store = Store.open(store_path)
    dt_s = store.action_spec.dt_s if store.action_spec else 0.0
    if abs(dt_s - spec.dt_s) > 0.01 * spec.dt_s:
        there = f"its actions are {dt_s:g} s apart" if dt_s else "it has no actions"
        raise ValueError(
            f"{store_path}: {there}, and the policy's are {spec.dt_s:g} s apart. imagination= needs demonstrations at "
            "the policy's rate."
        )
    chosen = _choose(store, spec, samples, seed)
    if not chosen:
        ahead_s = max(spec.future_offsets_s)
        raise ValueError(
            f"{store_path}: no two episodes of one family last longer than the {ahead_s:g} s that are imagined."
        )
    how = {"steps": steps, "sampler": sampler, "guidance": guidance}
    parts = [_measure(policy, _load(store, spec, moments), seed + i, how) for i, moments in enumerate(chosen)]
    all_of = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found = _summary(all_of, seed)
    found["episodes"] = len({episode for moments in chosen for episode, _ in moments})
    found["samples"] = sum(len(moments) for moments in chosen)
    found["candidates"] = {"min": min(map(len, chosen)), "max": max(map(len, chosen))}
    found["page"] = {"items": list(_for_page(found))}
    return found


def _choose(store: Store, spec: PolicySpec, samples: int, seed: int) -> list[list[tuple[int, int]]]:
    """Groups of (episode, step): full groups first, families in turn, until `samples` moments are together."""
    ahead = round(max(spec.future_offsets_s) / spec.dt_s)
    by_place: dict[tuple[str, int], list[tuple[int, int]]] = {}
    needed = {f"rgb_{camera}" for camera in (*spec.cameras, *spec.future_cameras)}
    needed |= {f"depth_{camera}" for camera in spec.depth_cameras}
    for episode in range(store.n_episodes):
        if not all(store.has(name, episode) for name in needed):
            continue
        start, stop = store.bounds(episode)
        task = store.task_of(episode) or {}
        family = str(task.get("family") or task.get("name", ""))
        for step in range(0, stop - start - ahead, EVERY):
            by_place.setdefault((family, step), []).append((episode, step))
    groups: dict[str, list[list[tuple[int, int]]]] = {}
    for (family, step), moments in by_place.items():
        rng = draws.generator(seed, step, 0, f"imagination/{family}")
        moments = [moments[i] for i in rng.permutation(len(moments))[:GROUP]]
        if len(moments) >= 2:
            groups.setdefault(family, []).append(moments)
    chosen: list[list[tuple[int, int]]] = []
    queues = [sorted(found, key=lambda g: (-len(g), g[0][1])) for found in groups.values()]
    while any(queues) and sum(map(len, chosen)) < samples:
        for queue in queues:
            if queue and sum(map(len, chosen)) < samples:
                chosen.append(queue.pop(0))
    return chosen


def _load(store: Store, spec: PolicySpec, moments: Sequence[tuple[int, int]]) -> _Group:
    camera = spec.future_cameras[0]
    offsets = np.array([round(o / spec.dt_s) for o in spec.future_offsets_s])
    hold = ActionSpec.from_dict(spec.action) if {"kind", "names", "dt_s"} <= set(spec.action) else None
    executed = "executed" if "executed" in store.fields else "action"
    samples, now, actions, real = [], [], [], []
    then: dict[str, list[np.ndarray]] = {cam: [] for cam in spec.future_cameras}
    for index, (episode, step) in enumerate(moments):
        start, stop = store.bounds(episode)
        row = start + step
        buffer = ObservationBuffer.of(spec)
        for past in range(max(start, row - spec.obs_steps + 1), row + 1):
            buffer.push((past - row) * spec.dt_s, _observation(store, spec, past))
        task = store.task_of(episode)
        samples.append(buffer.sample(spec, _instruction(task), spec.robot, index))
        now.append(letterbox(store.rows(f"rgb_{camera}", [row])[0], spec.image_size))
        for cam, frames in then.items():
            frames.append(letterbox(store.rows(f"rgb_{cam}", row + offsets), spec.image_size))
        chunk = store.rows(executed, np.arange(row, min(row + spec.chunk_steps, stop)))
        missing = spec.chunk_steps - len(chunk)
        if missing:
            after = hold_action(hold, chunk[-1]) if hold is not None else chunk[-1]
            chunk = np.concatenate([chunk, np.repeat(after[None], missing, axis=0)])
        actions.append(chunk.astype(np.float32))
        real.append(np.arange(spec.chunk_steps) < min(spec.chunk_steps - missing, offsets.max()))
    futures = {cam: np.stack(frames) for cam, frames in then.items()}
    episodes = np.array([episode for episode, _ in moments])
    return _Group(samples, np.stack(now), futures, np.stack(actions), np.stack(real), episodes)


def _instruction(task: dict[str, Any] | None) -> str | None:
    """The canonical wording of a task."""
    if task is None:
        return None
    paraphrases = task.get("paraphrases") or [task["name"]]
    return str(paraphrases[0])


def _observation(store: Store, spec: PolicySpec, row: int) -> dict[str, np.ndarray]:
    names = [f"rgb_{cam}" for cam in spec.cameras] + [f"depth_{cam}" for cam in spec.depth_cameras]
    found = {name: letterbox(store.rows(name, [row])[0], spec.image_size) for name in names if name in store.fields}
    if "proprio" in store.fields:
        found["proprio"] = store.rows("proprio", [row])[0]
    return found


def _measure(policy: Policy, group: _Group, seed: int, how: dict[str, Any]) -> dict[str, np.ndarray]:
    """One number per moment (sums where a ratio is formed later), keyed by what it is; `how` it is sampled."""
    camera = policy.spec.future_cameras[0]
    obs, n = collate(group.samples), len(group.samples)
    true_latent = policy.encode(torch.from_numpy(group.then[camera])).float().cpu()  # (N, F, C, h, w)

    imagined = _futures(policy, obs, camera, seed, mode=policy.imagines_in, **how)
    distance = torch.cdist(imagined[:, -1].flatten(1), true_latent[:, -1].flatten(1)).numpy()
    found = {"retrieved": (distance.argmin(1) == np.arange(n)).astype(float), "episode": group.episode}
    now_latent = policy.encode(torch.from_numpy(group.now)).float().cpu()
    distance = torch.cdist(now_latent.flatten(1), true_latent[:, -1].flatten(1)).numpy()
    found["now_retrieved"] = (distance.argmin(1) == np.arange(n)).astype(float)

    # The last imagined frame, on pixels; the encoder's own picture of the truth is the best that could be drawn.
    truth = group.then[camera][:, -1].astype(np.float64)
    moved = (np.abs(truth - group.now).max(-1) > STILL)[..., None]
    drawn = _pictures(policy, imagined[:, -1])
    redrawn = _pictures(policy, true_latent[:, -1])
    found["static_pixels"] = 3.0 * (~moved).sum((1, 2, 3))
    found["static_error"] = (((drawn - truth) ** 2) * ~moved).sum((1, 2, 3))
    found["static_floor"] = (((redrawn - truth) ** 2) * ~moved).sum((1, 2, 3))

    found["moving_error"] = (((drawn - truth) ** 2) * moved).sum((1, 2, 3))
    found["moving_now"] = (((_pictures(policy, now_latent) - truth) ** 2) * moved).sum((1, 2, 3))

    if policy.learned("forward"):
        own, other = (
            _futures(policy, obs, camera, seed, mode="forward", actions=torch.from_numpy(actions), **how)
            for actions in (group.actions, np.roll(group.actions, 1, axis=0))
        )
        found["forward_own"] = (((_pictures(policy, own[:, -1]) - truth) ** 2) * moved).sum((1, 2, 3))
        found["forward_other"] = (((_pictures(policy, other[:, -1]) - truth) ** 2) * moved).sum((1, 2, 3))

    if policy.learned("inverse"):
        futures = {cam: torch.from_numpy(frames) for cam, frames in group.then.items()}

        def said(mode: str, **given: Any) -> np.ndarray:
            generator = torch.Generator().manual_seed(seed)
            action = policy.predict(obs, mode=mode, generator=generator, **given, **how).action
            assert action is not None  # modes that give actions
            return np.where(group.real[..., None], action.float().cpu().numpy(), np.nan)

        found["action"] = np.where(group.real[..., None], group.actions, np.nan)
        found["action_read"] = said("inverse", future=futures)
        found["action_planned"] = said(policy.acts_in)
    return found


def _futures(policy: Policy, obs: Batch, camera: str, seed: int, **options: Any) -> torch.Tensor:
    """Imagined latents (N, F, C, h, w), from the same noise whatever the mode's inputs are."""
    prediction = policy.predict(obs, generator=torch.Generator().manual_seed(seed), **options)
    return prediction.future_latent[camera].float().cpu()


def _pictures(policy: Policy, latent: torch.Tensor) -> np.ndarray:
    return policy.decode(latent).cpu().numpy().astype(np.float64)


def _summary(found: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    n, episode = len(found["retrieved"]), found["episode"]

    def share(rows: np.ndarray) -> float:
        return float(found["retrieved"][rows].mean())

    def moving(rows: np.ndarray) -> float:
        return float(found["moving_error"][rows].sum() / max(found["moving_now"][rows].sum(), 1e-9))

    def psnr(rows: np.ndarray, key: str) -> float:
        error, pixels = found[key][rows].sum(), found["static_pixels"][rows].sum()
        return 10 * np.log10(255**2 / max(error / max(pixels, 1), 1e-9))

    def gap(rows: np.ndarray) -> float:
        return psnr(rows, "static_floor") - psnr(rows, "static_error")

    def ratio(rows: np.ndarray) -> float:
        return float(found["forward_other"][rows].sum() / max(found["forward_own"][rows].sum(), 1e-9))

    def r2(rows: np.ndarray, read: str = "action_read") -> float:
        values = r2_per_dim(found["action"][rows], found[read][rows])
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")

    every = np.arange(n)
    summary: dict[str, Any] = {
        "retrieval": {
            "share": share(every),
            "ci95": bootstrap(share, episode, seed),
            "n": n,
            "present_share": float(found["now_retrieved"].mean()),
        },
        "static_psnr": {
            "imagined_db": psnr(every, "static_error"),
            "reconstruction_db": psnr(every, "static_floor"),
            "gap_db": gap(every),
            "ci95": bootstrap(gap, episode, seed),
        },
        "moving": {"error_ratio": moving(every), "ci95": bootstrap(moving, episode, seed)},
    }
    if "forward_own" in found:
        summary["forward"] = {"error_ratio": ratio(every), "ci95": bootstrap(ratio, episode, seed)}
    if "action_read" in found:
        per_dim = r2_per_dim(found["action"], found["action_read"])
        summary["inverse"] = {
            "r2": r2(every),
            "ci95": bootstrap(r2, episode, seed),
            "planned_r2": r2(every, "action_planned"),
            "r2_per_dim": [None if np.isnan(v) else v for v in per_dim],
        }
    return summary


def r2_per_dim(truth_NTA: np.ndarray, read_NTA: np.ndarray) -> np.ndarray:
    """Coefficient of determination per action dim, float64 (A,); NaN entries of the truth do not count.

    NaN for a dim that never varies: there is nothing to explain.
    """
    truth, read = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (truth_NTA, read_NTA))
    there = ~np.isnan(truth).any(1)
    truth, read = truth[there], read[there]
    total = ((truth - truth.mean(0)) ** 2).sum(0)
    left = ((truth - read) ** 2).sum(0)
    return np.where(total > 1e-12, 1 - left / np.maximum(total, 1e-12), np.nan)


def bootstrap(statistic: Any, episode_N: np.ndarray, seed: int) -> list[float]:
    """95 % percentile interval of `statistic(rows)` over resampled episodes, whose moments go together: [low, high]."""
    rng = draws.generator(seed, 0, 0, "bootstrap")
    rows_of = [np.flatnonzero(episode_N == episode) for episode in np.unique(episode_N)]
    n = len(rows_of)
    values = [statistic(np.concatenate([rows_of[i] for i in rng.integers(0, n, n)])) for _ in range(RESAMPLES)]
    return [float(v) for v in np.nanpercentile(values, [2.5, 97.5])]


def _for_page(found: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The numbers in words."""
    retrieval, static, moving = (found[k] for k in ("retrieval", "static_psnr", "moving"))

    def item(title: str, shown: str, ci95: list[float], form: str, meaning: str) -> dict[str, str]:
        low, high = (form.format(v) for v in ci95)
        return {"title": title, "shown": shown, "interval": f"{low} to {high}", "meaning": meaning}

    share = [100 * v for v in retrieval["ci95"]]
    yield item(
        "finds its own future",
        f"{100 * retrieval['share']:.0f} %",
        share,
        "{:.0f}",
        f"the imagined frame is nearer to what came than to {found['candidates']['max'] - 1} other futures of the same "
        f"family and step; the present frame itself would be in {100 * retrieval['present_share']:.0f} %",
    )
    yield item(
        "what stands still",
        f"{static['imagined_db']:.1f} dB",
        static["ci95"],
        "{:+.2f} dB",
        f"PSNR where nothing moves; the image encoder alone reaches {static['reconstruction_db']:.1f} dB "
        "(interval: of the gap)",
    )
    yield item(
        "what moves",
        f"× {moving['error_ratio']:.2f}",
        moving["ci95"],
        "{:.2f}",
        "error on moving pixels, relative to imagining that nothing moves",
    )
    if forward := found.get("forward"):
        yield item(
            "what actions do",
            f"× {forward['error_ratio']:.2f}",
            forward["ci95"],
            "{:.2f}",
            "error on moving pixels when it is given another episode’s actions, relative to the true ones",
        )
    if inverse := found.get("inverse"):
        yield item(
            "which actions did it",
            f"R² {inverse['r2']:.2f}",
            inverse["ci95"],
            "{:.2f}",
            "of the actions that it reads off the present and a future frame; of what it would do itself, without the "
            f"future, R² {inverse['planned_r2']:.2f}",
        )
