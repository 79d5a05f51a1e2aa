"""What a plugin imports: the ``hookimpl`` marker and the descriptors that its hooks return."""

import pluggy

from plugins.contracts import (
    Actuator,
    ActuatorPlugin,
    Controller,
    ControllerPlugin,
    EncoderPlugin,
    RewardTerm,
    Robot,
    RobotPlugin,
    Task,
    TaskPlugin,
)

hookimpl = pluggy.HookimplMarker("roverloop")
"""Marks a function of a plugin as the implementation of a hook of ``plugins.hookspecs``."""

__all__ = [
    "Actuator",
    "ActuatorPlugin",
    "Controller",
    "ControllerPlugin",
    "EncoderPlugin",
    "RewardTerm",
    "Robot",
    "RobotPlugin",
    "Task",
    "TaskPlugin",
    "hookimpl",
]
