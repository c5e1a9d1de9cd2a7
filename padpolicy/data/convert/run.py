"""Recognises a recording and writes it in another format: resumable, all of it or nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padpolicy.data.convert.recording import ConvertError, DamagedError, Options, Recording
from padpolicy.data.files import is_url
from padpolicy.data.layout import StoreError, lock

# In this order they are asked whether they recognise a path. The modules are imported when they are asked.
FORMATS = ("ours", "replay_buffer", "lerobot", "robomimic", "rlds", "videos")
WRITES = ("ours", "replay_buffer", "lerobot")
_STATE = "conversion.json"  # beside the data set that is being written: what it is made of


@dataclass
class Converted:
    """What `convert` did."""

    path: Path
    format: str  # of the source
    episodes: int
    skipped: dict[str, str]  # episode id -> why it was left out
    notes: list[str]  # what a person should know


def open_recording(path: str | Path, options: Options | None = None) -> Recording:
    """Whatever recording is at `path`.

    Raises:  ConvertError if no format recognises it, or if it is damaged.
    """
    path, options = Path(path), options or Options()
    if not path.exists():
        raise ConvertError(f"{path}: there is nothing at this path.")
    for name in FORMATS:
        module = _module(name)
        if module.recognises(path):
            return module.read(path, options)
    known = "; ".join(_module(name).NAME for name in FORMATS)
    raise ConvertError(f"{path}: this is none of the recordings that padpolicy knows: {known}.")


def convert(
    src: str | Path,
    dst: str | Path,
    to: str = "ours",
    options: Options | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Converted:
    """Writes the recording at `src` as `to` at `dst`.

    It is written into a hidden folder beside `dst`, which is renamed when it is whole; the same call again goes on
    where one was interrupted.

    Args:    to: one of WRITES.   progress: is called with (episodes done, in all, id of the last).
    Raises:  ConvertError if `dst` exists, if the recording lacks something that an option must say, or where it is
             damaged (DamagedError, unless options.skip_damaged); LockedError if another process converts to `dst`.
    """
    if is_url(src) or is_url(dst):
        raise ConvertError(f"{src if is_url(src) else dst} is in an object store; convert works on disk. Copy it there.")
    src, dst, options = Path(src), Path(dst), options or Options()
    if to not in WRITES:
        raise ConvertError(f"--to {to}: expected one of {', '.join(WRITES)}.")
    if dst.exists():
        raise ConvertError(f"{dst} exists. Choose another path, or remove it first.")
    recording = open_recording(src, options)
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        work = dst.parent / f".{dst.name}.converting"
        work.mkdir(exist_ok=True)
        with lock(work):
            skipped = _write_all(recording, src, work, to, options, progress)
            os.rename(work / "data", dst)
            shutil.rmtree(work)
    finally:
        recording.close()
    return Converted(dst, recording.format, len(recording.ids) - len(skipped), skipped, recording.notes.lines)


def _write_all(
    recording: Recording,
    src: Path,
    work: Path,
    to: str,
    options: Options,
    progress: Callable[[int, int, str], None] | None,
) -> dict[str, str]:
    """Writes the episodes that are not yet in work/data. Returns those that were left out, and why."""
    state, file = _state_of(recording, src, to, options), work / _STATE
    if (work / "data").exists() and (not file.is_file() or file.read_text(encoding="utf-8") != state):
        shutil.rmtree(work / "data")  # of another recording, or of other options: nothing of it can be used
    file.write_text(state, encoding="utf-8")
    total, skipped = len(recording.ids), {}
    if not total:
        raise ConvertError(f"{src}: {recording.format} without a single episode.")
    if len(set(recording.ids)) < total:
        twice = next(name for name, n in Counter(recording.ids).items() if n > 1)
        raise ConvertError(f"{src}: two of its episodes are called {twice}; one of them would be lost. Rename it.")
    writer = _module(to).create(work / "data", recording.spec, total)
    try:
        for i, name in enumerate(recording.ids):
            if name not in writer.done:
                try:
                    writer.append(recording.episode(i))
                except (
                    StoreError
                ) as error:  # damaged where it was read, or not fit to be written (NaN, times that repeat)
                    if isinstance(error, ConvertError) and not isinstance(error, DamagedError):
                        raise
                    if not options.skip_damaged:
                        raise DamagedError(
                            f"episode {name}: {error} Restore it and give the same command again, which goes on from "
                            "here; or leave such episodes out with --skip-damaged."
                        ) from error
                    skipped[name] = str(error)
            if progress:
                progress(i + 1, total, name)
        if len(skipped) == total:
            raise ConvertError(f"{src}: not one of its {total} episodes can be read; {next(iter(skipped.items()))}")
        writer.finish()
    finally:
        writer.close()
    return skipped


def _state_of(recording: Recording, src: Path, to: str, options: Options) -> str:
    """What a conversion is made of: where this changes, an interrupted one is not gone on with."""
    said = {name: value for name, value in dataclasses.asdict(options).items() if name != "skip_damaged"}
    ids = hashlib.blake2b("\n".join(recording.ids).encode(), digest_size=8).hexdigest()
    spec = recording.spec.to_dict()
    return json.dumps({"src": str(src.resolve()), "to": to, "options": said, "ids": ids, "spec": spec}, sort_keys=True)


def _module(name: str) -> Any:
    return importlib.import_module(f"padpolicy.data.convert.{name}")
