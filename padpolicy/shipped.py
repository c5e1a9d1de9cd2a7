"""Where the files that come with padpolicy are: configs/ and data/, in a checkout or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(relative: str) -> Path:
    """Path of a shipped file or folder, for example `configs` or `data/weights/vae`.

    Raises:  FileNotFoundError naming what there is beside it, or both places that were looked at.
    """
    in_wheel = _PACKAGE / "_shipped" / relative
    in_checkout = _PACKAGE.parent / relative
    for path in (in_wheel, in_checkout):
        if path.exists():
            return path
    for folder in (in_wheel.parent, in_checkout.parent):
        if "/" in relative and folder.is_dir():
            there = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
            raise FileNotFoundError(f"{in_wheel.name!r} does not come with padpolicy; {folder} has {there}.")
    raise FileNotFoundError(
        f"{relative!r} should come with padpolicy; looked at {in_wheel} and {in_checkout}. Reinstall padpolicy."
    )
