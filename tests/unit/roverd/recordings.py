"""Self-checks as a robot would have recorded them, with any sign turned."""

from __future__ import annotations

import math

from protocol.moment import Pose
from protocol.step import Intervention
from roverd.selfcheck.judge import REST, Phase, Recording
from roverd.selfcheck.signals import Sample

PERIOD_S = 0.1
NO_FLAGS = Intervention(0)


def drive(forward, left, *, ticks=7, wheel=1.0, gyro=1.0, odometry=(1.0, 1.0), start=0, flags=NO_FLAGS, **more):
    """Drive some ticks; what is measured is the truth times a factor each, and ``more`` state."""
    samples, pose = [], Pose(1.0, -2.0, 3.0)
    for tick in range(ticks):
        turn = odometry[1] * left * PERIOD_S
        heading = pose.yaw_rad + turn / 2
        way = odometry[0] * forward * PERIOD_S
        x_m, y_m = pose.x_m + way * math.cos(heading), pose.y_m + way * math.sin(heading)
        pose = Pose(x_m, y_m, math.remainder(pose.yaw_rad + turn, math.tau))
        state = {"linear_vel": wheel * forward, "angular_vel": gyro * left, **more}
        stamp_ns = round((start + tick) * PERIOD_S * 1e9)
        samples.append(Sample(stamp_ns, (forward, left), state, pose, int(flags), (start + tick) * PERIOD_S))
    return samples


def recording(name="forward", forward=0.05, left=0.0, **factors):
    return Recording(Phase(name, forward, left, 0.6), drive(forward, left, **factors))


def whole(**factors):
    """Record all pulses of a robot that may drive backwards."""
    pulses = [("forward", 0.05, 0.0), ("backward", -0.05, 0.0), ("left", 0.0, 0.3), ("right", 0.0, -0.3)]
    recordings = []
    for name, forward, left in pulses:
        recordings += [recording(REST, 0.0, 0.0, **factors), recording(name, forward, left, **factors)]
    return recordings
