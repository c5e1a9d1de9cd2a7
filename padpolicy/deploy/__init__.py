"""A checkpoint drives a robot: `padpolicy deploy`, its live page, its recording, and `padpolicy replay`."""

from padpolicy.deploy.replay import replay
from padpolicy.deploy.run import deploy

__all__ = ["deploy", "replay"]
