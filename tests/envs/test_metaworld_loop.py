"""From MetaWorld's experts to a store and back into its scenes. Needs the extra `metaworld` and an OpenGL library."""

import fakes
import numpy as np
import pytest
import torch

pytest.importorskip("metaworld", reason="the extra metaworld is not installed")
from padpolicy_envs import gl

try:
    gl.open_context()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)

from padpolicy import config
from padpolicy.data.collect import ENVS, collect
from padpolicy.data.store import Store
from padpolicy.data.validate import validate
from padpolicy.evaluation.rollout import EpisodeSpec, check_fit, needed_cameras, run_episodes
from padpolicy.evaluation.vector import VectorEnv
from padpolicy.policy import Prediction

TASKS = ["drawer-close", "reach"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    out = tmp_path_factory.mktemp("metaworld") / "m.zarr"
    settings = [f"tasks=[{','.join(TASKS)}]", "episodes_per_task=1", "workers=1", "env.options.image_size=32"]
    return collect(config.load("collect", ["env=metaworld", f"out={out}", *settings]))


def test_a_store_of_metaworld_says_all_there_is_to_know(path):
    store = Store.open(path)
    assert not [finding for finding in validate(path) if finding.level != "info"]
    assert (store.robot, store.renderer, store.action_spec.dt_s) == ("metaworld_sawyer", "gl", 0.0125)
    assert [store.task_of(i)["family"] for i in range(2)] == ["easy", "easy"]
    assert set(store.cameras) == {"corner4", "gripperPOV"} and store.cameras["corner4"]["size"] == [32, 32]
    action = store.read("action", 0, store.n_rows)
    assert action.dtype == np.float32 and np.abs(action).max() <= 1


class Shown(fakes.FakePolicy):
    """Plays one recorded episode, in chunks."""

    def __init__(self, actions, chunk_steps):
        known = ENVS["padpolicy/MetaWorld-v0"]
        super().__init__(
            cameras=["corner4"],
            depth_cameras=[],
            future_cameras=[],
            image_size=32,
            obs_steps=1,
            chunk_steps=chunk_steps,
            dt_s=0.0125,
            action_dim=4,
            proprio_dim=4,
            action=known.action.to_dict(),
            robot="metaworld_sawyer",
            renderer="gl",
        )
        self.actions, self.at = actions, 0

    def noise_shapes(self, mode):
        return {"action": (self.spec.chunk_steps, 4)}

    def predict(self, obs, **_):
        rows = np.arange(self.at, self.at + self.spec.chunk_steps).clip(max=len(self.actions) - 1)
        self.at += self.spec.chunk_steps
        return Prediction(action=torch.from_numpy(self.actions[rows])[None])


@pytest.mark.parametrize("execution", ["chunk", "waypoint"])
def test_what_the_expert_did_is_done_again_as_actions_and_as_poses(path, execution):
    """Deltas count from the commanded pose: the script drives to where eight of them lead."""
    store = Store.open(path)
    episode = store.episode(TASKS.index("drawer-close"))
    cfg = config.load("eval", ["checkpoint=", "out=", "env=metaworld", "exec_steps=8", f"execution={execution}"])
    policy = Shown(episode.arrays["executed"], 8)
    with VectorEnv(needed_cameras(policy.spec, cfg).env, 1, 0) as envs:
        check_fit(policy.spec, envs.description, cfg)
        assert envs.description.observation["rgb_corner4"] == (32, 32, 3)  # as large as the policy looks
        (result,) = run_episodes(policy, envs, cfg, [EpisodeSpec(episode.task, episode.seed)])
    assert result.success and result.family == "easy"
    if execution == "chunk":
        assert result.steps == len(episode.arrays["action"])
