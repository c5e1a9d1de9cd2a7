"""What all foreign recordings look like from here: `Recording` is read, a `Writer` is written, both an episode at a time.

A format is one file of this folder. A reader opens a path as a `Recording`: what every episode has (`StoreSpec`), how
many there are, and each as an `Episode` whose arrays may read their rows when they are asked for, so that memory stays
bounded whatever the length. What a format cannot say comes from `Options`, and where it must be known and is not, the
error names the option.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from padpolicy.data.actions import KINDS
from padpolicy.data.layout import StoreError
from padpolicy.data.store import Episode, StoreSpec


class ConvertError(StoreError):
    """A recording that cannot be read, or an option that it needs. The message names the file or the option."""


class DamagedError(ConvertError):
    """One episode that cannot be read, while others may: `skip_damaged` leaves it out."""


@contextmanager
def damage_named(file: Path) -> Iterator[None]:
    """Whatever a library raises on damaged bytes becomes a DamagedError that names the file."""
    try:
        yield
    except ConvertError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise DamagedError(
            f"{file}: cannot be read ({type(error).__name__}: {text}). Restore it from a copy."
        ) from error


@dataclass(frozen=True)
class Options:
    """What a recording may not say itself. Empty: what it says, else unknown, else an error that names the option."""

    fps: float = 0.0  # steps a second
    task: str = ""  # the instruction of episodes that have none; of videos, "{name}" stands for the file's name in words
    action_kind: str = ""  # "absolute", "delta", "relative_to_chunk_start" or "unknown"
    robot: str = ""  # key of the normaliser
    cameras: tuple[str, ...] = ()  # only these; empty: all
    proprio: tuple[str, ...] = ()  # the recording's arrays that make up the proprioception; empty: the format's usual
    filter_key: str = ""  # robomimic: only the demonstrations of this mask
    image_size: int = 0  # pixels; pictures are letterboxed to this square. 0: as they are (folders of videos: 256)
    skip_damaged: bool = False  # leave episodes out that cannot be read, instead of stopping there

    def __post_init__(self) -> None:
        if self.action_kind and self.action_kind not in KINDS:
            raise ConvertError(f"--action-kind {self.action_kind}: expected one of {', '.join(KINDS)}.")
        for name in ("fps", "image_size"):
            if getattr(self, name) < 0:
                raise ConvertError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 0.")

    def dt_s(self, format_name: str) -> float:
        """Seconds between steps, for a format that does not say.

        Raises:  ConvertError naming --fps.
        """
        if self.fps <= 0:
            raise ConvertError(
                f"{format_name} does not say how many steps a second it has. Give --fps, for example 10."
            )
        return 1 / self.fps

    def instruction(self, format_name: str) -> str:
        """The instruction, for a format that does not say.

        Raises:  ConvertError naming --task.
        """
        if not self.task:
            raise ConvertError(
                f"{format_name} does not say what was to be done. Give --task 'push the block onto the T', in the words "
                "that the policy will be given."
            )
        return self.task


@dataclass
class Notes:
    """What a person should know about a conversion: what stays unknown, what was left out. Each is said once."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)


class Recording(Protocol):
    """A foreign data set, open for reading."""

    format: str  # "LeRobotDataset v3.0": for people, and for whoever resumes
    spec: StoreSpec
    ids: Sequence[str]  # of the episodes, in order, each once
    notes: Notes

    def episode(self, i: int) -> Episode:
        """Episode `i`, whose `id` is `ids[i]`.

        Raises:  DamagedError naming the file; also from its arrays, when their rows are read.
        """

    def close(self) -> None:
        """Gives files back."""


class Writer(Protocol):
    """A data set that is being written, in a folder of its own."""

    @property
    def done(self) -> set[str]:
        """Ids of the episodes that are in it, committed: an interrupted conversion goes on behind them."""

    def append(self, episode: Episode) -> None:
        """Adds and commits one episode, all of it or nothing."""

    def finish(self) -> None:
        """Writes what can only be written at the end."""

    def close(self) -> None:
        """Gives locks and files back. What was not finished can be opened again."""


class Format(Protocol):
    """What the module of a format offers. One that only reads has no `create`."""

    NAME: str

    def recognises(self, path: Path) -> bool:
        """Is there something of this format at `path`? Never raises for what is of another."""

    def read(self, path: Path, options: Options) -> Recording:
        """Opens it. Raises ConvertError."""

    def create(self, path: Path, spec: StoreSpec, total: int) -> Writer:
        """Opens a data set for writing; one that is already at `path` is gone on with."""


def action_notes(notes: Notes, kind: str, option: str) -> str:
    """The kind of the actions: the option, or what the format says; noted where it stays unknown."""
    kind = option or kind or "unknown"
    if kind == "unknown":
        notes.add(
            "the kind of the actions is unknown: a policy can be trained on them, but none of it will drive a robot until "
            "it is said (--action-kind absolute, delta or relative_to_chunk_start)."
        )
    return kind
