"""Settings on the command line: as text, what `padpolicy VERB --help` prints; and a dataclass as --options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

from padpolicy import config
from padpolicy.config import schema
from padpolicy.shipped import shipped

T = TypeVar("T")


def settings_help(verb: str, about: str) -> str:
    """All settings of a verb with default and comment, read from the source of the schema, their only home."""
    settings = config.SCHEMAS[verb]
    lines = [f"padpolicy {verb} key=value …", "", about, ""]
    comments = _comments(schema)
    rows = list(_rows(settings(), "", comments))
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


def options_help(cls: type) -> list[str]:
    """A line per field of a dataclass, as --options."""
    comments = _comments(inspect.getmodule(cls) or schema)
    rows = []
    for item in dataclasses.fields(cls):
        value = "" if item.default is False else f" {item.name.rpartition('_')[2].upper()}"
        rows.append((f"--{item.name.replace('_', '-')}{value}", comments.get((cls.__name__, item.name), "")))
    width = max(len(option) for option, _ in rows)
    return [f"  {option:{width}}  {comment}".rstrip() for option, comment in rows]


def parse_options(cls: type[T], arguments: Sequence[str]) -> tuple[T, list[str]]:
    """--options as an instance of a dataclass of str, int, float, bool and tuples of str; and the other arguments.

    Raises:  ConfigError for an unknown option, a missing value or one of the wrong type.
    """
    defaults = {f"--{item.name.replace('_', '-')}": item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    others: list[str] = []
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("--"):
            others.append(option + equals + value)
            continue
        if option not in defaults:
            raise config.ConfigError(f"unknown option {option}; there are {', '.join(defaults)}.")
        item = defaults[option]
        if isinstance(item.default, bool):
            if equals:
                raise config.ConfigError(f"{option} takes no value; leave it out for no.")
            values[item.name] = True
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise config.ConfigError(f"{option} needs a value.")
            value = rest.pop(0)
        try:
            kind: Any = type(item.default)
            values[item.name] = tuple(filter(None, value.split(","))) if kind is tuple else kind(value)
        except ValueError:
            expected = {int: "a whole number", float: "a number"}[kind]
            raise config.ConfigError(f"{option} {value}: expected {expected}.") from None
    return cls(**values), others


def _comments(module: ModuleType) -> dict[tuple[str, str], str]:
    """(class, setting) -> the comments above the setting and on its lines."""
    source = inspect.getsource(module)
    text = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    first = item.lineno - 1
                    while text[first - 1].startswith("    # "):
                        first -= 1
                    own = text[first : item.end_lineno]
                    said = [line.partition("# ")[2] for line in own if "  # " in line]
                    found[node.name, item.target.id] = " ".join(said)
    return found


def _in_defaults(verb: str, group: str) -> bool:
    return f"- {group}:" in (shipped("configs") / f"{verb}.yaml").read_text()
