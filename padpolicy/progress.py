"""One progress bar for every verb: on a terminal a bar, in a log file a line every half minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

Advance = Callable[[int, str], None]  # (how many are done, a few words about the last)
Counted = Callable[[int, int, str], None]  # (done, of how many, a few words)
LINE_EVERY_S = 30.0


@contextmanager
def bar(what: str, total: int) -> Iterator[Advance]:
    """Yields `advance(done, words)`. Writes to stderr, so that stdout stays what a verb prints."""
    if not sys.stderr.isatty():
        yield _lines(what, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    more = (TimeRemainingColumn(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, *more, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, words="")
        yield lambda done, words: progress.update(task, completed=done, words=words)


@contextmanager
def counted_bar(what: str) -> Iterator[Counted]:
    """The same where only the work itself knows how much there is: yields `advance(done, total, words)`."""
    with ExitStack() as stack:
        advance: list[Advance] = []

        def count(done: int, total: int, words: str) -> None:
            if not advance:
                advance.append(stack.enter_context(bar(what, total)))
            advance[0](done, words)

        yield count


def _lines(what: str, total: int) -> Advance:
    last = time.monotonic()

    def advance(done: int, words: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            print(f"{what}: {done}/{total}  {words}".rstrip(), file=sys.stderr, flush=True)

    return advance
