"""Lets tests and the worker processes they start import tests/fakes.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
