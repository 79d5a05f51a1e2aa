"""Move a differential-drive rover through an arena with MuJoCo: gravity, wheel contacts, bumper contacts.

One model is compiled per robot; an arena only moves and resizes its obstacle geoms. Contact bits: 1 is the floor
(wheels and casters), 2 is everything that the bumper may hit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import mujoco

from protocol.moment import Pose

if TYPE_CHECKING:
    from plugins.robots.sim.arena import Arena

TIMESTEP_S = 0.01
RADIUS_M = 0.17
WHEEL_RADIUS_M = 0.065
HALF_TRACK_M = 0.13
SLOTS = 12
RESTING_HEIGHT_M = 0.0646

# The casters carry nothing at rest (0.5 mm of play): they catch the nodding of the base. The armature stands for the
# gear of the motors; without it this stiff a velocity servo is unstable at 10 ms. The floor is frictionless because
# MuJoCo takes the larger friction of the two geoms: wheels bring their own, casters have none.
_MODEL = """
<mujoco>
  <option timestep="{timestep}" integrator="implicitfast" cone="pyramidal" iterations="4" tolerance="1e-5">
    <flag midphase="disable"/>
  </option>
  <worldbody>
    <geom name="floor" type="plane" size="0 0 1" contype="1" conaffinity="0" condim="1"/>
    {walls}
    {slots}
    <body name="base" pos="0 0 {resting}">
      <freejoint/>
      <inertial pos="0 0 -0.01" mass="8" diaginertia="0.09 0.09 0.14"/>
      <geom name="bumper" type="sphere" size="{radius}" pos="0 0 0.12" contype="0" conaffinity="2" mass="0"/>
      <geom type="sphere" size="0.02" pos="0.12 0 -0.0445" contype="0" conaffinity="1" condim="1" mass="0"/>
      <geom type="sphere" size="0.02" pos="-0.12 0 -0.0445" contype="0" conaffinity="1" condim="1" mass="0"/>
      <site name="imu" pos="0 0 0.03"/>
      <body pos="0 {half_track} 0">
        <joint name="left" axis="0 1 0" armature="0.01"/>
        <geom type="sphere" size="{wheel}" mass="0.4" contype="0" conaffinity="1" condim="3"/>
      </body>
      <body pos="0 -{half_track} 0">
        <joint name="right" axis="0 1 0" armature="0.01"/>
        <geom type="sphere" size="{wheel}" mass="0.4" contype="0" conaffinity="1" condim="3"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <velocity joint="left" kv="2" forcerange="-3 3"/>
    <velocity joint="right" kv="2" forcerange="-3 3"/>
  </actuator>
  <sensor><accelerometer site="imu"/></sensor>
</mujoco>
"""


class Base:
    """The rover's body in an arena; collisions are latched from ``place`` on."""

    def __init__(self, half_m: float) -> None:
        """Compile the model of a room of side 2 ``half_m``."""
        self._model = mujoco.MjModel.from_xml_string(_model_text(half_m))
        self._state = mujoco.MjData(self._model)
        self._bumper = self._model.geom("bumper").id
        self._box = self._model.geom("box0").id
        self._cylinder = self._model.geom("cylinder0").id
        self._position = self._state.qpos
        self._command = self._state.ctrl
        self._accelerometer = self._state.sensordata
        self.collided = False

    def place(self, arena: Arena) -> None:
        """Put the rover at the start of an arena, at rest on its wheels."""
        model, state = self._model, self._state
        used = {self._box: 0, self._cylinder: 0}
        for first in used:
            model.geom_pos[first : first + SLOTS] = (100.0, 100.0, -10.0)
        for x, y, half_x, half_y, radius, height in arena.obstacles[:, :6].tolist():
            first = self._cylinder if radius > 0 else self._box
            geom = first + used[first]
            used[first] += 1
            size = (radius, height / 2, 0.0) if radius > 0 else (half_x, half_y, height / 2)
            model.geom_pos[geom] = (x, y, height / 2)
            model.geom_size[geom] = size
            model.geom_rbound[geom] = math.hypot(*size)
        mujoco.mj_resetData(model, state)
        yaw = arena.start.yaw_rad
        state.qpos[:7] = (*arena.start[:2], RESTING_HEIGHT_M, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
        self.collided = False
        mujoco.mj_step(model, state, nstep=10)

    def drive(self, linear_mps: float, angular_radps: float, steps: int) -> None:
        """Turn the wheels for ``steps`` of TIMESTEP_S as these body velocities ask without wheel slip."""
        turning = angular_radps * HALF_TRACK_M
        self._command[0] = (linear_mps - turning) / WHEEL_RADIUS_M
        self._command[1] = (linear_mps + turning) / WHEEL_RADIUS_M
        mujoco.mj_step(self._model, self._state, nstep=steps)
        if not self.collided and self._state.ncon and self._bumper in self._state.contact.geom:
            self.collided = True

    def attitude(self) -> tuple[Pose, float, float]:
        """Return the pose of the axle's middle on the floor, and roll and pitch in radians (REP-103)."""
        x, y, _, qw, qx, qy, qz = self._position.tolist()[:7]
        yaw = math.atan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy * qy + qz * qz))
        roll = math.atan2(2 * (qw * qx + qy * qz), 1 - 2 * (qx * qx + qy * qy))
        pitch = math.asin(max(-1.0, min(1.0, 2 * (qw * qy - qz * qx))))
        return Pose(x, y, yaw), roll, pitch

    def position(self) -> tuple[float, float]:
        """Return x and y of the axle's middle."""
        return self._position.item(0), self._position.item(1)

    def acceleration_mps2(self) -> float:
        """Return the size of what an accelerometer at the centre of the base measures: 9.81 at rest."""
        return math.hypot(*self._accelerometer.tolist())


def _model_text(half_m: float) -> str:
    # a slot compiled at the origin would stay there: MuJoCo then takes the frame of the world for it
    walls = "\n".join(
        f'<geom type="plane" size="0 0 1" pos="{x} {y} 0" zaxis="{-x} {-y} 0" contype="2" conaffinity="0"/>'
        for x, y in ((half_m, 0), (-half_m, 0), (0, half_m), (0, -half_m))
    )
    slots = "\n".join(
        f'<geom name="{kind}{slot}" type="{kind}" size="0.1 0.1 0.1" pos="100 100 -10" contype="2" conaffinity="0"/>'
        for kind in ("box", "cylinder")
        for slot in range(SLOTS)
    )
    return _MODEL.format(
        timestep=TIMESTEP_S,
        walls=walls,
        slots=slots,
        resting=RESTING_HEIGHT_M,
        radius=RADIUS_M,
        half_track=HALF_TRACK_M,
        wheel=WHEEL_RADIUS_M,
    )
