"""What reading and writing of a LeRobotDataset share: where things stand, and what is ours in them."""

from __future__ import annotations

import json
import zlib
from typing import Any

from padpolicy.data.store import StoreSpec

INFO = "meta/info.json"
EPISODES = "meta/episodes"  # v3.0: a folder of parquet files
IMAGES = "observation.images."
STATE = "observation.state"
OURS = "padpolicy"  # the block in info.json, and what the names of our columns of the episodes begin with


def feature_keys(spec: StoreSpec) -> dict[str, str]:
    """Our fields and the features that they are written as."""
    keys = {f"rgb_{camera}": IMAGES + camera for camera in spec.cameras}
    keys |= {f"depth_{camera}": f"{IMAGES}{camera}_depth" for camera in spec.depth_cameras}
    if spec.proprio is not None:
        keys["proprio"] = STATE
    if spec.action is not None:
        keys["action"] = "action"
    if spec.executed:
        keys["executed"] = "executed"
    return keys


def block_checksum(spec: dict[str, Any]) -> int:
    """Of our block in info.json: the file has no checksum of its own."""
    return zlib.crc32(json.dumps(spec, sort_keys=True).encode())
