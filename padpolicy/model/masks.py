"""The modes table: which groups are present, which of them are given clean, and who sees whom.

Training draws a mode per sample from what the sample has; sampling is told one. Both read this table, and a group that
is not in a mode's sequence is not in the sequence: there is no second way to ignore it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

NOISED = ("future_rgb", "future_depth", "action")  # the order of the groups behind the context
FUTURE = ("future_rgb", "future_depth")


@dataclass(frozen=True)
class Mode:
    """groups: in the sequence. given: clean inputs without a loss (tau = 0). sees: group -> groups it attends to.
    hears: the context has the instruction. executed: its actions are those that were executed, not those that should
    have been.
    """

    groups: tuple[str, ...]
    given: tuple[str, ...]
    sees: Mapping[str, tuple[str, ...]]
    hears: bool = True
    executed: bool = False

    @property
    def denoised(self) -> tuple[str, ...]:
        return tuple(group for group in self.groups if group not in self.given)


_FUTURE_ONLY = {group: FUTURE for group in FUTURE}
_COUPLING = {
    "blind": {**{group: NOISED for group in FUTURE}, "action": ("action",)},
    "pad": {**_FUTURE_ONLY, "action": NOISED},
    "full": {group: NOISED for group in NOISED},
}
COUPLINGS = tuple(_COUPLING)
MODES = ("policy", "joint", "video", "forward", "inverse")


def mode_table(coupling: str) -> dict[str, Mode]:
    """All modes under one coupling of `joint`. Every noised token also sees the whole context.

    `forward` never lets the action see the future it causes, and `inverse` leaves depth out, so that it can label
    ordinary video. `forward` does not hear the instruction: a world model that knows what the demonstrator wanted need
    not look at what the robot does. `inverse` does: a caption says what two frames leave open.
    """
    return {
        "policy": Mode(("action",), (), {"action": ("action",)}),
        "joint": Mode(NOISED, (), _COUPLING[coupling]),
        "video": Mode(FUTURE, (), _FUTURE_ONLY),
        "forward": Mode(NOISED, ("action",), _COUPLING["blind"], hears=False, executed=True),
        "inverse": Mode(
            ("future_rgb", "action"),
            ("future_rgb",),
            {"future_rgb": ("future_rgb",), "action": ("future_rgb", "action")},
            executed=True,
        ),
    }


def who_sees_whom(mode: Mode, sizes: Mapping[str, int], device: torch.device | None = None) -> Tensor | None:
    """(N, N) bool over the noised tokens, rows see columns; None if everybody sees everybody.

    Args:  sizes: tokens of each present group; a group of the mode that is absent in the whole batch has none.
    """
    groups = [group for group in NOISED if group in mode.groups and sizes.get(group)]
    if all(other in mode.sees[group] for group in groups for other in groups):
        return None
    rows = [
        torch.cat(
            [torch.full((sizes[group], sizes[other]), other in mode.sees[group], device=device) for other in groups],
            1,
        )
        for group in groups
    ]
    return torch.cat(rows, 0)


def describe(coupling: str) -> str:
    """The table as text: per mode and group, what it attends to besides the context."""
    lines = []
    for name, mode in mode_table(coupling).items():
        for group in mode.groups:
            state = "given" if group in mode.given else "denoised"
            context = "context" if mode.hears else "context without text"
            lines.append(f"{name:8} {group:13} {state:9} sees {context}, {', '.join(mode.sees[group])}")
    return "\n".join(lines)
