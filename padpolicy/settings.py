"""The settings of a verb as text: what `padpolicy VERB --help` prints."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from padpolicy import config
from padpolicy.shipped import shipped


def settings_help(verb: str, about: str) -> str:
    """All settings of a verb with default and comment, read from the source of padpolicy/config.py, their only home."""
    schema = config.SCHEMAS[verb]
    lines = [f"padpolicy {verb} key=value …", "", about, ""]
    comments = _comments()
    rows = list(_rows(schema(), "", comments))
    width = min(34, max(len(f"{key}={value}") for key, value, _ in rows))
    for key, value, comment in rows:
        lines.append(f"  {f'{key}={value}':{width}}  {comment}".rstrip())
    used = [name for name in config.groups() if _in_defaults(verb, name)]
    if used:
        lines += ["", "Groups (files in configs/ that set several at once):"]
        lines += [f"  {name}={'|'.join(config.groups()[name])}" for name in used]
    return "\n".join(lines)


def _rows(node: Any, prefix: str, comments: dict[tuple[str, str], str]) -> Iterator[tuple[str, str, str]]:
    for key, value in vars(node).items():
        if hasattr(value, "__dataclass_fields__"):
            yield from _rows(value, f"{prefix}{key}.", comments)
        else:
            comment = comments.get((type(node).__name__, key), "")
            yield prefix + key, "…" if value == config.MISSING else _yaml(value), comment


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value) if value != "" else "''"


def _comments() -> dict[tuple[str, str], str]:
    """(class, setting) -> the comment on the line where the setting begins."""
    source = inspect.getsource(config)
    text = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    _, hash_sign, comment = text[item.lineno - 1].partition("  # ")
                    found[node.name, item.target.id] = comment if hash_sign else ""
    return found


def _in_defaults(verb: str, group: str) -> bool:
    return f"- {group}:" in (shipped("configs") / f"{verb}.yaml").read_text()
