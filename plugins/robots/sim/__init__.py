"""A rover in a furnished room: MuJoCo physics, ray-cast RGB and depth, no GL."""

from __future__ import annotations

from plugins import Robot, RobotPlugin, hookimpl
from plugins.robots.sim.settings import SimSettings


def create(settings: SimSettings) -> Robot:
    """Make the robot; raises ImportError naming the extra where mujoco or numba are missing."""
    try:
        from plugins.robots.sim.robot import SimRobot  # noqa: PLC0415 - mujoco and numba only where they are used
    except ImportError as error:
        raise ImportError(f"robot sim: {error}: pip install 'roverloop[sim]'") from error
    return SimRobot(settings)


@hookimpl
def provide_robots() -> list[RobotPlugin]:
    """Offer the simulator."""
    return [RobotPlugin("sim", SimSettings, create)]
