"""What the settings name by its place in Python."""

from __future__ import annotations

import importlib
from typing import Any

from padpolicy.config import ConfigError


def named(path: str) -> Any:
    """What `package.module:name` stands for. Raises ConfigError if there is no such thing."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"robot.make={path!r}: expected package.module:function; {error}.") from None
