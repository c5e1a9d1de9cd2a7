"""Simulated environments for padpolicy: a robot arm over a table, drawn without any GL library.

Importing this package registers `padpolicy/Tabletop-v0`. It needs mujoco, numpy and gymnasium, nothing else.
"""

from __future__ import annotations

import gymnasium

from .experts import expert_action, rollout_expert
from .tasks import FAMILIES, TASKS, Task

__all__ = ["FAMILIES", "TASKS", "Task", "expert_action", "register_envs", "rollout_expert"]


def register_envs() -> None:
    """Make `padpolicy/Tabletop-v0` known to gymnasium; calling it again does nothing.

    gymnasium >= 1.0 loads no plug-ins by itself: either import this package first or let gymnasium do so with
    `gymnasium.make("padpolicy_envs:padpolicy/Tabletop-v0")`.
    """
    if "padpolicy/Tabletop-v0" not in gymnasium.registry:
        gymnasium.register("padpolicy/Tabletop-v0", entry_point="padpolicy_envs.tabletop:Tabletop")


register_envs()
