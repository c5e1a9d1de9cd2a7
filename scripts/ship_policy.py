"""Copies a trained policy into the folder that ships, its weights in half precision.

python scripts/ship_policy.py runs/tabletop --out data/weights/tabletop
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from padpolicy.saving import load_policy, save_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a run, checkpoint or policy folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=0, help="its own sampling steps; 0: as trained")
    args = parser.parse_args()
    policy = load_policy(args.policy)
    if args.steps:
        policy.config.diffusion.steps = args.steps
    save_policy(policy, args.out, dtype=torch.float16)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    count = sum(p.numel() for p in policy.parameters())
    print(f"{args.out}: {count / 1e6:.2f} M parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
