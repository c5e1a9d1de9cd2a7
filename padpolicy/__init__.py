"""padpolicy: one Diffusion Transformer denoises the future and the actions together.

Importing the package is cheap: torch is imported by the modules that need it, when they are imported.
"""

from __future__ import annotations

from importlib import metadata

__all__ = ["__version__"]

try:
    __version__ = metadata.version("padpolicy")
except metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+source"
