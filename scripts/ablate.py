"""Ablations: what a part is worth, by training the same policy with and without it. How and why: docs/ablations.md.

    python scripts/ablate.py scripts/ablation/futures.yaml --out runs/ablation/futures [--threads 1] [--only ARM ...]
        [--seeds 0 1 ...] [--table]

The same command again goes on after the last thing that was finished. --table runs nothing and only writes the table,
of what is there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from padpolicy.bench.study import study
from padpolicy.config import ConfigError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0, help="torch threads of each command; 0: torch's choice")
    parser.add_argument("--only", nargs="*", default=[], metavar="ARM", help="run these arms only")
    parser.add_argument("--seeds", nargs="*", type=int, default=[], help="run these seeds only")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the table")
    args = parser.parse_args()
    print(f"Table: {study(args.study, args.out, args.threads, args.only, args.seeds, run=not args.table)}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
