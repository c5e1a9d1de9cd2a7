"""Closed loop. Imports nothing here: the robot's side of the process boundary has no torch."""
