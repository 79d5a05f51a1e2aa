"""A rover in a furnished room: MuJoCo physics, ray-cast RGB and depth, no GL."""

from __future__ import annotations

from plugins import Robot, RobotPlugin, hookimpl
from plugins.robots.sim.settings import SimSettings
from protocol.node.require import require


def create(settings: SimSettings) -> Robot:
    """Make the robot; raises MissingExtraError where mujoco or numba are missing."""
    for module in ("mujoco", "numba"):
        require(module, "sim")
    from plugins.robots.sim.robot import SimRobot  # noqa: PLC0415 - mujoco and numba only where they are used

    robot = SimRobot(settings)
    robot.reset(0)
    robot.read(images=True)  # compiles the renderer now, where nobody waits for a frame
    return robot


@hookimpl
def provide_robots() -> list[RobotPlugin]:
    """Offer the simulator."""
    return [RobotPlugin("sim", SimSettings, create)]
