"""Simulated environments for padpolicy.

`padpolicy/Tabletop-v0` is a robot arm over a table, drawn without any GL library: it needs mujoco, numpy and gymnasium,
nothing else. `padpolicy/MetaWorld-v0` is MetaWorld's 50 tasks (padpolicy_envs.metaworld); it needs the package
metaworld and OpenGL. Importing this package registers both and loads neither of these.
"""

from __future__ import annotations

import gymnasium

from .experts import expert_action, rollout_expert
from .tasks import FAMILIES, TASKS, Task

__all__ = ["FAMILIES", "TASKS", "Task", "expert_action", "register_envs", "rollout_expert"]


ENVS = {"padpolicy/Tabletop-v0": "tabletop:Tabletop", "padpolicy/MetaWorld-v0": "metaworld:MetaWorld"}


def register_envs() -> None:
    """Make the environments known to gymnasium; calling it again does nothing.

    gymnasium >= 1.0 loads no plug-ins by itself: either import this package first or let gymnasium do so with
    `gymnasium.make("padpolicy_envs:padpolicy/Tabletop-v0")`.
    """
    for name, where in ENVS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=f"padpolicy_envs.{where}")


register_envs()
