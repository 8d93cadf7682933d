"""PPO-Penalty from scratch, in worlds small enough to enumerate."""
