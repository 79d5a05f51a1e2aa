"""The simulated rover: an arena per seed, MuJoCo physics, ray-cast cameras, drifting wheel odometry."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plugins.robots.sim.arena import Arena, draw_arena, shortest_path_m
from plugins.robots.sim.camera import CLEAR_M, Lens, forward_clearance_m, render
from plugins.robots.sim.physics import TIMESTEP_S, Base
from protocol.moment import Pose, Reading
from protocol.spec import Camera, Element, RobotSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugins.robots.sim.settings import SimSettings

CHUNK_S = 0.05
LAG = 0.35
"""Share of the difference to the command that the wheels make up in one chunk."""
NOISE_ROWS, NOISE_COLUMNS = 512, 12
MOUNTS = {"front": ("front",), "front_rear": ("front", "rear"), "none": ()}


class SimRobot:
    """A rover in a room.

    Equal arena seeds give equal readings, pixels included, whatever happened before; only ``stamp_ns`` goes on, for it
    is the simulated clock since the robot was made. Reading twice on one tick gives the same values.
    """

    is_simulated = True

    def __init__(self, settings: SimSettings) -> None:
        """Compile the physics; the first images of a fresh installation also compile the ray-caster."""
        self.spec = robot_spec(settings)
        self.safe_action = (0.0, 0.0)
        self._settings = settings
        self._base = Base(settings.arena_m / 2)
        self._lens = Lens.of(
            settings.image_height, settings.image_width, settings.horizontal_fov_deg, settings.camera_height_m
        )
        self._mounts = MOUNTS[settings.cameras]
        self._chunks = _chunks(self.spec.period_s, self.spec.action_delay_ms / 1000)
        self._clock_s = 0.0
        self.reset(0)

    def reset(self, arena_seed: int) -> None:
        """Begin an episode in the arena of a seed (0 or more)."""
        self.arena: Arena = draw_arena(arena_seed, self._settings)
        rng = np.random.Generator(np.random.PCG64([arena_seed, 1]))
        scale = self._settings.noise
        self._slip = (1.0 - scale * rng.uniform(0.0, 0.15), 1.0 + scale * rng.uniform(-0.15, 0.05))
        self._gyro_bias_radps = scale * rng.normal(0.0, 0.005)
        self._noise: list[list[float]] = (scale * rng.standard_normal((NOISE_ROWS, NOISE_COLUMNS))).tolist()
        self._pixel_seed = int(rng.integers(1 << 62))
        self._velocity = (0.0, 0.0)
        self._odometry = (0.0, 0.0, 0.0)
        self._clearance_m = CLEAR_M
        self._ticks = 0
        self._path_m = 0.0
        self._base.place(self.arena)
        self._place = self.arena.start[:2]
        self._world = {
            "arena_seed": float(arena_seed),
            "start_distance_m": self.arena.start_distance_m,
            "shortest_path_m": shortest_path_m(self.arena),
        }

    def advance(self, in_flight: Sequence[float], action: Sequence[float]) -> None:
        """Move one control period: lagging, slipping, noisy; commands beyond the limits are clipped, NaN is 0."""
        self._ticks += 1
        self._clock_s += self.spec.period_s
        noise = self._noise[self._ticks % NOISE_ROWS]
        commands = (self._clipped(in_flight), self._clipped(action))
        linear, angular = self._velocity
        for index, (which, steps, lag) in enumerate(self._chunks):
            linear += lag * (commands[which][0] - linear)
            angular += lag * (commands[which][1] - angular)
            self._move(linear, angular, noise[2 * index % 6], noise[2 * index % 6 + 1], steps)
        self._velocity = (linear, angular)

    def read(self, images: bool) -> Reading:  # noqa: FBT001 - the one question a tick asks
        """Report the state; ``min_forward_dist`` is of the newest front depth image (8.0 before there is one)."""
        pose, roll, pitch = self._base.attitude()
        noise = self._noise[self._ticks % NOISE_ROWS]
        pixels = self._render(pose, roll, pitch) if images else {}
        state = np.array(
            (
                self._velocity[0] + 0.005 * noise[6],
                self._velocity[1] + 0.01 * noise[7],
                roll + 0.002 * noise[8],
                pitch + 0.002 * noise[9],
                self._base.acceleration_mps2() + 0.05 * noise[10],
                self._clearance_m,
            ),
            np.float32,
        )
        return Reading(
            stamp_ns=round(self._clock_s * 1e9),
            state=state,
            images=pixels,
            odometry=Pose(*self._odometry),
            pose=pose,
            goal=self.arena.goal,
            collided=self._base.collided,
            elapsed_s=self._ticks * self.spec.period_s,
            world={**self._world, "path_m": self._path_m},
        )

    def close(self) -> None:
        """Nothing is held: memory goes with the object."""

    def _clipped(self, action: Sequence[float]) -> tuple[float, float]:
        settings = self._settings
        linear, angular = float(action[0]), float(action[1])
        if not (math.isfinite(linear) and math.isfinite(angular)):
            return 0.0, 0.0
        limit = settings.angular_limit_radps
        return (
            min(max(linear, settings.linear_low_mps), settings.linear_high_mps),
            min(max(angular, -limit), limit),
        )

    def _move(self, linear: float, angular: float, jolt: float, twist: float, steps: int) -> None:
        moving = min(1.0, 20.0 * (abs(linear) + 0.13 * abs(angular)))
        self._base.drive(
            self._slip[0] * linear + 0.01 * moving * jolt, self._slip[1] * angular + 0.03 * moving * twist, steps
        )
        seconds = steps * TIMESTEP_S
        x, y, yaw = self._odometry
        turn = (angular + self._gyro_bias_radps) * seconds
        middle = yaw + turn / 2
        self._odometry = (
            x + linear * seconds * math.cos(middle),
            y + linear * seconds * math.sin(middle),
            math.remainder(yaw + turn, math.tau),
        )
        place = self._base.position()
        self._path_m += math.hypot(place[0] - self._place[0], place[1] - self._place[1])
        self._place = place

    def _render(self, pose: Pose, roll: float, pitch: float) -> dict[str, npt.NDArray[np.generic]]:
        pixels: dict[str, npt.NDArray[np.generic]] = {}
        for index, mount in enumerate(self._mounts):
            backwards = mount == "rear"
            yaw = pose.yaw_rad + (math.pi if backwards else 0.0)
            ahead = self._settings.camera_ahead_m
            tilt = (-roll, -pitch) if backwards else (roll, pitch)
            rgb, depth = render(
                self._lens,
                (pose.x_m + ahead * math.cos(yaw), pose.y_m + ahead * math.sin(yaw), yaw, *tilt),
                self.arena,
                self._pixel_seed + 2 * self._ticks + index,
                self._settings.noise,
            )
            pixels[f"observation.images.{mount}"] = rgb
            pixels[f"observation.depth.{mount}"] = depth
            if not backwards:
                self._clearance_m = forward_clearance_m(depth, self._lens)
        return pixels


def robot_spec(settings: SimSettings) -> RobotSpec:
    """Declare the rover that the settings describe."""
    cameras = tuple(
        Camera(
            mount,
            kind,
            settings.image_height,
            settings.image_width,
            settings.control_rate_hz,
            horizontal_fov_deg=settings.horizontal_fov_deg,
        )
        for mount in MOUNTS[settings.cameras]
        for kind in ("rgb", "depth")
    )
    turn = settings.angular_limit_radps
    return RobotSpec(
        name="sim",
        cameras=cameras,
        state=(
            Element("linear_vel", "m/s", -2.0, 2.0, scale=0.5),
            Element("angular_vel", "rad/s", -6.0, 6.0, scale=1.5),
            Element("roll", "rad", -math.pi, math.pi, scale=0.1),
            Element("pitch", "rad", -math.pi / 2, math.pi / 2, scale=0.1),
            Element("accel_mag", "m/s^2", 0.0, 100.0, centre=9.81, scale=2.0),
            Element("min_forward_dist", "m", 0.0, CLEAR_M, scale=4.0),
        ),
        action=(
            Element("linear_cmd", "m/s", settings.linear_low_mps, settings.linear_high_mps),
            Element("angular_cmd", "rad/s", -turn, turn),
        ),
        control_rate_hz=settings.control_rate_hz,
        action_repeat=settings.action_repeat,
        action_delay_ms=settings.action_delay_ms,
    )


def _chunks(period_s: float, delay_s: float) -> tuple[tuple[int, int, float], ...]:
    """Cut a period into (0: in flight or 1: new action, physics steps, lag) of at most CHUNK_S each."""
    period, delay, chunk = (round(seconds / TIMESTEP_S) for seconds in (period_s, delay_s, CHUNK_S))
    cuts = []
    for which, begin, end in ((0, 0, delay), (1, delay, period)):
        for start in range(begin, end, chunk):
            steps = min(chunk, end - start)
            cuts.append((which, steps, 1 - (1 - LAG) ** (steps / chunk)))
    return tuple(cuts)
