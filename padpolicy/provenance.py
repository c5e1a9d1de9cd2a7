"""Which code made a number."""

from __future__ import annotations

import subprocess
from pathlib import Path

from padpolicy import __version__


def commit() -> str:
    """The commit of this code, with "+changes" if the working tree differs; the version where there is no git."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # An installed copy inside somebody else's repository is not that repository's commit.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            raise FileNotFoundError
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return f"v{__version__}"
