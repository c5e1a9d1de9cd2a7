"""Laws of the language and of the scenes; no physics."""

import collections

import numpy as np
import pytest
from padpolicy_envs import FAMILIES, TASKS, tasks


def test_there_are_enough_families_and_instructions():
    assert len(FAMILIES) >= 6
    assert {task.family for task in TASKS.values()} == set(FAMILIES)
    assert len({task.instruction for task in TASKS.values()}) == len(TASKS) >= 24
    assert all(name == task.name for name, task in TASKS.items())


def test_every_wording_belongs_to_one_task():
    wordings = [w for task in TASKS.values() for w in (*task.paraphrases, task.held_out_paraphrase)]
    assert len(wordings) == len(set(wordings))
    assert all(len(task.paraphrases) >= 4 and task.paraphrases[0] == task.instruction for task in TASKS.values())


def test_held_out_words_occur_in_training():
    # Names may be learnt anywhere; the other words must occur in the same family.
    names = {word for task in TASKS.values() if not task.held_out for name in task.objects for word in name.split()}
    known = collections.defaultdict(lambda: set(names))
    for task in TASKS.values():
        if not task.held_out:
            known[task.family].update(word for wording in task.paraphrases for word in wording.split())
    for task in TASKS.values():
        assert set(task.held_out_paraphrase.split()) <= known[task.family], task.held_out_paraphrase


def test_held_out_pairs_leave_verb_and_object_in_training():
    train = [task for task in TASKS.values() if not task.held_out]
    held_out = [task for task in TASKS.values() if task.held_out]
    assert len(held_out) >= 4
    for task in held_out:
        assert any(other.object == task.object and other.verb != task.verb for other in train), task.name
        others = [o for o in train if o.verb == task.verb and o.side == task.side]
        assert any(other.object != task.object for other in others), task.name


@pytest.mark.parametrize("name", TASKS)
def test_scenes(name):
    """Each admits its task and another, names each thing once, and the same (task, seed) gives the same scene."""
    for seed in range(10):
        scene = tasks.sample_scene(TASKS[name], seed)
        assert scene == tasks.sample_scene(TASKS[name], seed)
        possible = tasks.tasks_in(scene)
        assert name in possible and len(possible) >= 2
        colours = [thing.name.split()[0] for thing in (*scene.objects, *scene.buttons)]
        assert len(colours) == len(set(colours))
        fixtures = len(scene.buttons) + (scene.tray is not None) + (scene.drawer is not None)
        assert 3 <= len(scene.objects) + fixtures <= 5
        xy = np.array([thing.xy for thing in scene.objects])
        gaps = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + np.eye(len(xy))
        assert gaps.min() > 0.10, "the open fingers need room between two objects"


def test_objects_lie_all_over_the_table():
    xy = np.array([t.xy for seed in range(200) for t in tasks.sample_scene(TASKS["touch_red_cube"], seed).objects])
    assert (np.ptp(xy, axis=0) > 0.25).all()


def test_unknown_task_names_near_misses():
    with pytest.raises(
        ValueError, match=r"expected one of the \d+ names .* got 'lift_red_cub'; did you mean lift_red_cube"
    ):
        tasks.get_task("lift_red_cub")
