"""`padpolicy bench`: how fast this machine acts, steps environments and trains, always against something beside it."""
