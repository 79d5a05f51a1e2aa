"""The robot's daemon: it senses, runs the policy, keeps the robot safe and streams every step."""
