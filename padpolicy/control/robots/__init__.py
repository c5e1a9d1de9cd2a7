"""Robots: what runs on the robot's side of the process boundary, and how the policy's side reaches it. No torch."""
