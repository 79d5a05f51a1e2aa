"""Every hook there is. Each is called once, at start, in the main thread, before any device or network is opened.

A hook returns descriptors and does no work: no device, no file, no heavy import (import mujoco or torch inside
``create`` or ``build``). Budget 100 ms, not enforced. A hook that raises makes its plugin unavailable: the plugin is
listed with its error, the others go on. What the descriptors' functions may do is said in ``plugins.contracts``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from plugins.contracts import (
        ActuatorPlugin,
        ControllerPlugin,
        EncoderPlugin,
        RewardTerm,
        RobotPlugin,
        TaskPlugin,
    )

hookspec = pluggy.HookspecMarker("roverloop")


@hookspec
def provide_robots() -> list[RobotPlugin]:  # type: ignore[empty-body]
    """Return the robots of this plugin (entry-point group ``roverloop.robots``; example: ``plugins.robots.sim``).

    ``create`` runs in roverd's main thread and may take seconds and fail: roverd then exits with the error.
    ``advance`` and ``read`` run once per control period, in the thread that made the robot, and must fit into it.
    """


@hookspec
def provide_actuators() -> list[ActuatorPlugin]:  # type: ignore[empty-body]
    """Return actuators (entry-point group ``roverloop.actuators``; example: ``plugins.actuators.board``).

    Loaded by the control process and its spare, where a slow import makes a late start and nothing else. ``write`` runs
    on every tick, budget 1 ms; one that raises is counted, shown as a flag of the step, and tried again.
    """


@hookspec
def provide_tasks() -> list[TaskPlugin]:  # type: ignore[empty-body]
    """Return the tasks of this plugin (entry-point group ``roverloop.tasks``; example: ``plugins.tasks.goal``).

    A task's methods run on every tick in roverd's loop thread, budget 2 ms each. A task that fails three times is
    disabled: the episode is truncated and the robot gets its safe action.
    """


@hookspec
def provide_rewards() -> list[RewardTerm]:  # type: ignore[empty-body]
    """Return reward terms (entry-point group ``roverloop.rewards``; example: ``plugins.rewards.progress``).

    A term runs on every tick in roverd's loop thread, budget 1 ms. It is pure. One that raises, overruns or is not
    finite counts as 0.0 for that tick and is disabled after three such strikes.
    """


@hookspec
def provide_encoders() -> list[EncoderPlugin]:  # type: ignore[empty-body]
    """Return image encoders (entry-point group ``roverloop.encoders``; example: ``plugins.encoders.rgbd``).

    ``planes`` runs on both machines, ``build`` on the trainer only, at start; a failure stops the start.
    """


@hookspec
def provide_controllers() -> list[ControllerPlugin]:  # type: ignore[empty-body]
    """Return hand-written controllers (entry-point group ``roverloop.controllers``; ``plugins.controllers.reactive``).

    ``act`` runs on decision ticks in roverd's loop thread (demonstrations, baselines) or in ``reward lint``, budget
    5 ms. A controller that fails three times is disabled and the robot gets its safe action.
    """
