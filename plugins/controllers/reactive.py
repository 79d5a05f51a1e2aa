"""Follow gaps in the depth images of the last seconds towards the goal: what hand-writing gets without learning."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plugins import ControllerPlugin, hookimpl
from plugins.controllers.scripted import drive, goal_bearing

if TYPE_CHECKING:
    from plugins.contracts import Images
    from protocol.spec import Camera, RobotSpec, TaskSpec

FloatArray = npt.NDArray[np.float32]

HEADINGS = np.radians(np.arange(-180.0, 180.0, 5.0)).astype(np.float32)
HALF_LANE_M = 0.26
LOOK_AHEAD_M = 1.0
CAMERA_AHEAD_M = 0.12
SEEN_WITHIN_M = 2.5
REMEMBERED_POINTS = 500
STOP_M = 0.30
TURN_IN_PLACE_RAD = 0.5
SHORTFALL_RAD_PER_M = 3.0
SWING = 0.1


class ReactiveController:
    """Choose the heading whose lane is free for longest and nearest to the goal's, and turn in place for large ones.

    Points seen before are moved along with the measured velocities, so that an obstacle beside the rover is not
    forgotten when it leaves the view. Without a depth camera it drives as the scripted ``drive``.
    """

    def __init__(self, robot: RobotSpec, task: TaskSpec) -> None:
        self._robot, self._task = robot, task
        depths = [camera for camera in robot.cameras if camera.kind == "depth"]
        self._camera: Camera | None = depths[0] if depths else None
        self._decision_s = robot.action_repeat * robot.period_s
        self._places = [robot.state_index(name) for name in ("linear_vel", "angular_vel")] if depths else []
        self.reset(0)

    def reset(self, seed: int) -> None:  # noqa: ARG002 - nothing is random here
        """Forget what the last episode showed."""
        self._points = np.empty((0, 2), np.float32)
        self._heading = 0.0

    def act(self, images: Images, state: FloatArray, task: FloatArray) -> FloatArray:
        """Return (linear, angular); other actions stay zero."""
        fastest, turn = self._robot.action[0].high, self._robot.action[1].high
        if self._camera is None or self._camera.key not in images:
            shares = drive(self._robot, self._task, task)
            wanted = (shares[0] * fastest, shares[1] * turn)
        else:
            self._remember(images[self._camera.key], self._camera, state)
            wanted = self._steer(fastest, turn, task)
        action = np.zeros(len(self._robot.action), np.float32)
        for index, (value, element) in enumerate(zip(wanted, self._robot.action, strict=False)):
            action[index] = min(max(value, element.low), element.high)
        return action

    def _remember(self, depth: npt.NDArray[np.generic], camera: Camera, state: FloatArray) -> None:
        forward, turned = (float(state[place]) * self._decision_s for place in self._places)
        cos, sin = math.cos(turned), math.sin(turned)
        rotation = np.array(((cos, -sin), (sin, cos)), np.float32)
        moved = (self._points - np.array((forward, 0.0), np.float32)) @ rotation
        self._points = np.concatenate((nearest_points(depth, camera), moved))[:REMEMBERED_POINTS]

    def _steer(self, fastest: float, turn: float, task: FloatArray) -> tuple[float, float]:
        goal = goal_bearing(self._task, task)
        reach = LOOK_AHEAD_M if goal is None else min(LOOK_AHEAD_M, float(task[0]))
        free = free_distances(self._points)
        cost = (
            np.abs(_wrapped(HEADINGS - (goal or 0.0)))
            + SHORTFALL_RAD_PER_M * np.maximum(reach - free, 0.0)
            + SWING * np.abs(_wrapped(HEADINGS - self._heading))
        )
        best = int(np.argmin(cost))
        heading = float(HEADINGS[best])
        self._heading = heading
        angular = heading / self._decision_s
        if abs(heading) > TURN_IN_PLACE_RAD or free[best] < STOP_M:
            return 0.0, angular if abs(heading) > 0.1 else turn
        room = min(1.0, 1.5 * (float(free[best]) - STOP_M + 0.1))
        return fastest * room * (1.0 - abs(heading)), angular


def nearest_points(depth: npt.NDArray[np.generic], camera: Camera) -> FloatArray:
    """Return float32[n, 2], metres ahead of the axle and to the left: the nearest reading of every second column.

    Rows from the horizon to an eighth of the image above it: no floor is in them.
    """
    height, width = depth.shape
    focal = width / 2 / math.tan(math.radians(camera.horizontal_fov_deg) / 2)
    columns = np.arange(0, width, max(1, width // 50))
    band = depth[height // 2 - max(1, height // 8) : height // 2, columns].astype(np.float32) * 1e-3
    ahead = np.where(band > 0, band, np.inf).min(axis=0)
    seen = ahead < SEEN_WITHIN_M
    left = ahead[seen] * ((0.5 * (width - 1) - columns[seen]) / focal)
    return np.stack((ahead[seen] + CAMERA_AHEAD_M, left), axis=-1).astype(np.float32)


def free_distances(points: FloatArray) -> FloatArray:
    """Return float32[n]: how far a lane of the rover's width is free of points along each of HEADINGS, at most 8 m."""
    cos, sin = np.cos(HEADINGS)[:, None], np.sin(HEADINGS)[:, None]
    along = points[:, 0] * cos + points[:, 1] * sin
    aside = np.abs(points[:, 1] * cos - points[:, 0] * sin)
    blocking = (aside < HALF_LANE_M) & (along > 0)
    distances: FloatArray = np.where(blocking, along, np.float32(8.0)).min(axis=1, initial=8.0).astype(np.float32)
    return distances


def _wrapped(angle: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return (angle + math.pi) % math.tau - math.pi


def create(robot: RobotSpec, task: TaskSpec, seed: int) -> ReactiveController:  # noqa: ARG001 - the hook passes it
    """Make the controller."""
    return ReactiveController(robot, task)


@hookimpl
def provide_controllers() -> list[ControllerPlugin]:
    """Offer ``reactive``."""
    return [ControllerPlugin("reactive", create)]
