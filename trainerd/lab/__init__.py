"""Judge policies: pure statistics of episodes."""
