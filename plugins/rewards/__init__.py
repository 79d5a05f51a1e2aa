"""Reward terms: each a pure function of two moments, unweighted; a run's settings give the weights.

Terms see the previous and the current moment of one control tick. The reward of a tick is the weighted sum.
"""

GOAL_WEIGHTS = {"progress": 0.2, "success": 1.0, "collision": -0.8, "tick_cost": -0.002}
"""The goal task's default: +1.0 a metre of progress, +5 success, -4 collision, -0.01 a tick, all times 0.2."""

DRIVE_WEIGHTS = {"linear_velocity": 2.0, "angular_velocity": -0.5, "obstacle_proximity": -5.0, "tick_cost": -0.01}
"""The four-term reward of plain driving. It rewards laps for ever: use it with the drive task, not to reach a goal."""

ENVIRONMENT_WEIGHTS = {"environment": 1.0}
"""The environment task's default: what the environment itself says."""
