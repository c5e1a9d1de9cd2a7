"""Build hook: an editable install takes the hook for gymnasium along, and leaves configs/ and data/ where they are."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableFiles(BuildHookInterface):
    """Without it hatchling copies all `force-include` folders into site-packages even for `pip install -e`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            build_data["force_include_editable"] = {"envs/padpolicy_gymnasium.pth": "padpolicy_gymnasium.pth"}
