"""One observation or training window, in numpy: what the robot's computer handles, which has no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

TIME_AXES = ("obs", "future", "action")


@dataclass
class Sample:
    """One training window, or one observation: numpy arrays without the batch dimension. What is absent has no key."""

    fields: dict[str, np.ndarray] = field(default_factory=dict)
    is_pad: dict[str, np.ndarray] = field(default_factory=dict)  # time axis -> (n,) bool: True where repeated, not seen
    time_s: dict[str, np.ndarray] = field(default_factory=dict)  # time axis -> (n,) float32, seconds from "now"
    text: str | None = None  # None: no instruction known
    robot: str = ""  # key of the normaliser; "" for action-free video
    index: int = 0  # which sample of the global batch this is: the key of its random draws
