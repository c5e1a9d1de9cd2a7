"""Noise. Knows no network, no robot and no data: functions of tensors and of tau in [0, 1], 0 clean, 1 pure noise."""
