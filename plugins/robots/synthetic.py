"""A robot without physics for tests: exact kinematics, moving gradient images, a goal that is easy to reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plugins import Robot, RobotPlugin, hookimpl
from protocol.moment import Pose, Reading
from protocol.node.config import option
from protocol.spec import Camera, Element, RobotSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

HALF_M = 3.0
FASTEST_MPS, FASTEST_RADPS = 0.5, 1.5


@dataclass(frozen=True)
class SyntheticSettings:
    """Choose cameras and timing; the default image is higher than wide by no common factor, to expose swapped axes."""

    cameras: tuple[str, ...] = option(("front",), help="names of RGB and depth pairs")
    image_height: int = option(12, help="rows of every image", low=2, high=1080)
    image_width: int = option(20, help="columns of every image", low=2, high=1920)
    control_rate_hz: float = option(10.0, help="control ticks per second", low=0.1, high=1000.0)
    action_repeat: int = option(1, help="ticks for which one decision is held", low=1, high=50)
    action_delay_ms: float = option(0.0, help="time from a tick to its actuation", low=0.0)
    goal_m: float = option(1.0, help="distance of the goal, ahead within 0.5 rad", low=0.1, high=2.0)
    wheel_sign: int = option(
        1, help="-1: the encoder of the wheels counts backwards; 0: it is unplugged", low=-1, high=1
    )
    gyro_sign: int = option(1, help="-1: the gyroscope is mounted upside down; 0: it is unplugged", low=-1, high=1)
    odometry_sign: int = option(1, help="-1: odometry runs and turns the other way; 0: it stands", low=-1, high=1)
    motor_sign: int = option(1, help="-1: the motors are wired the other way round; 0: they are off", low=-1, high=1)
    sensors_turn_after_s: float = option(
        0.0, help="time on the robot's clock after which its signs are as above, until then right; 0: from the start"
    )


class SyntheticRobot:
    """A point that obeys at once in an empty square room; leaving the room is the only collision.

    Its signs can be made wrong, as those of a robot that was put together in a hurry.

    Images: RGB red grows with the row, green with the column, blue with the time. Depth grows with row and column; the
    lower half of the column where the goal is reads 300 mm, the upper half shows nothing nearer than 3 m.
    Everything follows from the arena seed and the actions.
    """

    is_simulated = True

    def __init__(self, settings: SyntheticSettings) -> None:
        self.spec = _robot_spec(settings)
        self.safe_action = (0.0, 0.0)
        self._settings = settings
        self._clock_s = 0.0
        self.reset(0)

    def reset(self, arena_seed: int) -> None:
        """Stand at the origin; the seed chooses heading and goal."""
        rng = np.random.Generator(np.random.PCG64(arena_seed))
        yaw = float(rng.uniform(-math.pi, math.pi))
        bearing = yaw + float(rng.uniform(-0.5, 0.5))
        self._seed = arena_seed
        self._goal = (self._settings.goal_m * math.cos(bearing), self._settings.goal_m * math.sin(bearing))
        self._pose = self._odometry = Pose(0.0, 0.0, yaw)
        self._velocity = (0.0, 0.0)
        self._ticks = 0
        self._path_m = 0.0
        self._collided = False

    def advance(self, in_flight: Sequence[float], action: Sequence[float]) -> None:
        """Move one period along two arcs, the first with the action in flight."""
        self._ticks += 1
        self._clock_s += self.spec.period_s
        delay_s = self.spec.action_delay_ms / 1000
        for command, seconds in ((in_flight, delay_s), (action, self.spec.period_s - delay_s)):
            if seconds > 0:
                self._move(command, seconds)

    def read(self, images: bool) -> Reading:  # noqa: FBT001 - the one question a tick asks
        """Report exact values."""
        pose = self._pose
        ahead = (math.cos(pose.yaw_rad), math.sin(pose.yaw_rad))
        walls = [
            (math.copysign(HALF_M, step) - at) / step
            for step, at in zip(ahead, pose[:2], strict=True)
            if abs(step) > 1e-9
        ]
        return Reading(
            stamp_ns=round(self._clock_s * 1e9),
            state=np.array((*self._measured_velocity(), max(0.0, min(8.0, *walls))), np.float32),
            images=self._render() if images else {},
            odometry=self._odometry,
            pose=pose,
            goal=self._goal,
            collided=self._collided,
            elapsed_s=self._ticks * self.spec.period_s,
            world={
                "arena_seed": float(self._seed),
                "start_distance_m": self._settings.goal_m,
                "shortest_path_m": self._settings.goal_m,
                "path_m": self._path_m,
            },
        )

    def close(self) -> None:
        """Nothing is held."""

    def _measured_velocity(self) -> tuple[float, float]:
        wheels, gyro = (self._settings.wheel_sign, self._settings.gyro_sign) if self._is_turned else (1, 1)
        return wheels * self._velocity[0], gyro * self._velocity[1]

    @property
    def _is_turned(self) -> bool:
        """Whether the signs are those of the settings by now."""
        return self._clock_s >= self._settings.sensors_turn_after_s

    def _move(self, command: Sequence[float], seconds: float) -> None:
        motors = self._settings.motor_sign
        linear = motors * min(max(float(command[0]), 0.0), FASTEST_MPS)
        angular = motors * min(max(float(command[1]), -FASTEST_RADPS), FASTEST_RADPS)
        self._pose = _moved(self._pose, linear, angular, seconds)
        sign = self._settings.odometry_sign if self._is_turned else 1
        self._odometry = _moved(self._odometry, sign * linear, sign * angular, seconds)
        self._velocity = (linear, angular)
        self._path_m += abs(linear) * seconds
        self._collided = self._collided or max(abs(self._pose.x_m), abs(self._pose.y_m)) > HALF_M

    def _render(self) -> dict[str, npt.NDArray[np.generic]]:
        height, width = self._settings.image_height, self._settings.image_width
        rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
        bearing = math.atan2(self._goal[1] - self._pose.y_m, self._goal[0] - self._pose.x_m) - self._pose.yaw_rad
        share = 0.5 - math.remainder(bearing, math.tau) / math.radians(69.0)
        images: dict[str, npt.NDArray[np.generic]] = {}
        for index, name in enumerate(self._settings.cameras):
            rgb = np.empty((height, width, 3), np.uint8)
            rgb[..., 0] = rows * 255 // (height - 1)
            rgb[..., 1] = columns * 255 // (width - 1)
            rgb[..., 2] = (self._ticks * 7 + index * 31 + self._seed) % 256
            depth = (3000 + 10 * rows + 3 * columns + self._ticks % 50 + 100 * index).astype(np.int16)
            if 0 <= share < 1:
                depth[height // 2 :, int(share * width)] = 300
            images[f"observation.images.{name}"] = rgb
            images[f"observation.depth.{name}"] = depth
        return images


def _moved(pose: Pose, linear: float, angular: float, seconds: float) -> Pose:
    """Return a pose after an arc."""
    middle = pose.yaw_rad + angular * seconds / 2
    x_m = pose.x_m + linear * seconds * math.cos(middle)
    y_m = pose.y_m + linear * seconds * math.sin(middle)
    return Pose(x_m, y_m, math.remainder(pose.yaw_rad + angular * seconds, math.tau))


def _robot_spec(settings: SyntheticSettings) -> RobotSpec:
    return RobotSpec(
        name="synthetic",
        cameras=tuple(
            Camera(name, kind, settings.image_height, settings.image_width, settings.control_rate_hz)
            for name in settings.cameras
            for kind in ("rgb", "depth")
        ),
        state=(
            Element("linear_vel", "m/s", 0.0, FASTEST_MPS, scale=0.5),
            Element("angular_vel", "rad/s", -FASTEST_RADPS, FASTEST_RADPS, scale=1.5),
            Element("min_forward_dist", "m", 0.0, 8.0, scale=4.0),
        ),
        action=(
            Element("linear_cmd", "m/s", 0.0, FASTEST_MPS),
            Element("angular_cmd", "rad/s", -FASTEST_RADPS, FASTEST_RADPS),
        ),
        control_rate_hz=settings.control_rate_hz,
        action_repeat=settings.action_repeat,
        action_delay_ms=settings.action_delay_ms,
    )


def create(settings: SyntheticSettings) -> Robot:
    """Make the robot."""
    return SyntheticRobot(settings)


@hookimpl
def provide_robots() -> list[RobotPlugin]:
    """Offer the synthetic robot."""
    return [RobotPlugin("synthetic", SyntheticSettings, create)]
