"""Learning: rollouts from records, PPO on rollouts, checkpoints, and the thread that runs the jobs."""
