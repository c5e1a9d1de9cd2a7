"""Tokens in, tokens out. The network knows no robot, no noise schedule and no encoder."""
