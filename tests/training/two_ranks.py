"""Run as a script: trains with two gloo processes, as torchrun would start them. Arguments: out, data, overrides.

One import serves both: the second process is a fork of the first, made before any thread exists.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_run import settings, use_exact_encoders  # noqa: E402

from padpolicy.training.loop import train  # noqa: E402


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> int:
    out, data, *overrides = sys.argv[1:]
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    child = os.fork()
    rank = 0 if child else 1
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    failed = 1
    try:
        use_exact_encoders(setattr)
        train(settings(Path(out), Path(data), *overrides))
        failed = 0
    finally:
        if not child:
            os._exit(failed)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
