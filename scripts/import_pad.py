"""A released PAD checkpoint as a policy folder, and such a policy as a file in PAD's form (docs/released_weights.md).

python scripts/import_pad.py pad.pt --out runs/pad --camera corner4 --robot metaworld_sawyer --step-s 0.0125
python scripts/import_pad.py runs/pad --out pad.pt --step-s 0.0125
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from padpolicy.config import ConfigError, EncodersConfig
from padpolicy.released import args_of, import_pad, is_released, save_released, weights_of
from padpolicy.saving import CheckpointError, load_policy, save_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a released file (.pt, .safetensors), or a policy to write as one")
    parser.add_argument("--out", type=Path, required=True, help="a policy folder, or a file (.pt, .safetensors)")
    parser.add_argument("--step-s", type=float, required=True, help="seconds of one step of the recordings")
    parser.add_argument("--camera", default="front", help="what the one camera is called here")
    parser.add_argument("--robot", default="robot", help="what the robot is called here")
    parser.add_argument("--names", nargs="+", help="of the action's numbers; four are x, y, z, gripper")
    parser.add_argument("--image", default="stabilityai/sd-vae-ft-mse", help="encoders.image")
    parser.add_argument("--text", default="ViT-B-32-quickgelu/openai", help="encoders.text")
    args = parser.parse_args()
    if not is_released(args.source):
        policy = load_policy(args.source)
        save_released(args.out, weights_of(policy), args_of(policy, args.step_s))
    else:
        encoders = EncodersConfig(image=args.image, text=args.text)
        about = {"camera": args.camera, "robot": args.robot, "step_s": args.step_s, "names": args.names}
        policy = import_pad(args.source, encoders, **about)
        save_policy(policy, args.out)
    spec, count = policy.spec, sum(parameter.numel() for parameter in policy.parameters())
    print(f"{args.out}: {count / 1e6:.2f} M parameters, {spec.chunk_steps} poses {spec.dt_s:g} s apart, {spec.robot}")


if __name__ == "__main__":
    try:
        main()
    except (CheckpointError, ConfigError) as error:
        sys.exit(f"error: {error}")
