"""Parts of a robot that break when told to: plugins, and the switches that break them.

A switch is a file in the folder that ``ROVERLOOP_FAULTS`` names. The parts look at it on every call, so that a fault
begins and ends within one tick.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.daemon.installing import install_plugin

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.daemons import Site

VARIABLE = "ROVERLOOP_FAULTS"

SWITCHES = '''
import os
import time


def is_on(name):
    return os.path.exists(os.path.join(os.environ["ROVERLOOP_FAULTS"], name))


def hang(name):
    while is_on(name):
        time.sleep(0.01)


def spin(name):
    while is_on(name):
        pass


def is_first(name):
    """Only one process breaks, not the one that takes over from it."""
    try:
        place = os.path.join(os.environ["ROVERLOOP_FAULTS"], name + "." + "taken")
        os.close(os.open(place, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
'''

ROBOT = (
    SWITCHES
    + """
import numpy as np
from plugins import RobotPlugin, hookimpl
from plugins.robots import synthetic


class FaultyRobot(synthetic.SyntheticRobot):
    is_simulated = False
    frozen = None

    def read(self, images):
        hang("sensor_hangs")
        spin("roverd_loops")
        reading = super().read(images)
        reading.stamp_ns = time.monotonic_ns()
        if is_on("camera_silent"):
            reading.images = {}
        if is_on("camera_frozen") and reading.images:
            self.frozen = self.frozen or reading.images
            reading.images = {key: image.copy() for key, image in self.frozen.items()}
        else:
            self.frozen = None
        if is_on("state_nan"):
            reading.state = np.full_like(reading.state, np.nan)
        for key, image in reading.images.items():
            if "depth" in key and is_on("obstacle"):
                image[:] = 150 + self._ticks % 2
            if "depth" in key and is_on("phantom"):
                image[image.shape[0] // 2, image.shape[1] // 2] = 120
        return reading


@hookimpl
def provide_robots():
    return [RobotPlugin("faulty", synthetic.SyntheticSettings, FaultyRobot)]
"""
)

CONTROLLER = (
    SWITCHES
    + '''
import numpy as np
from plugins import ControllerPlugin, hookimpl


class FaultyController:
    """Drive in a circle that ends nowhere."""

    def reset(self, seed):
        pass

    def act(self, images, state, task):
        spin("policy_loops")
        if is_on("policy_late"):
            time.sleep(0.03)
        if is_on("policy_nan"):
            return np.array((np.nan, 0.5), np.float32)
        if is_on("policy_inf"):
            return np.array((np.inf, 0.5), np.float32)
        return np.array((0.1, 1.0), np.float32)


@hookimpl
def provide_controllers():
    return [ControllerPlugin("circle", lambda robot, task, seed: FaultyController())]
'''
)

ACTUATOR = (
    SWITCHES
    + """
from plugins import ActuatorPlugin, hookimpl
from plugins.actuators import board


class FaultyBoard(board.Board):
    def write(self, action):
        hang("actuator_hangs")
        if is_on("control_loops") and is_first("control_loops"):
            spin("control_loops")
        if is_on("actuator_raises") and any(action) or is_on("actuator_dead"):
            raise OSError(5, "the motor controller reports a fault")
        super().write(action)


@hookimpl
def provide_actuators():
    return [ActuatorPlugin("faulty_board", board.BoardSettings, lambda settings, spec: FaultyBoard(settings))]
"""
)


class Switches:
    """Break parts and mend them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def on(self, name: str) -> None:
        (self.folder / name).touch()

    def off(self) -> None:
        for each in self.folder.iterdir():
            each.unlink()


def install(site: Site) -> Switches:
    """Give a site the plugins ``faulty`` (robot), ``circle`` (controller) and ``faulty_board`` (actuator)."""
    if VARIABLE not in site.env:
        install_plugin(site, "robots", "faulty", ROBOT)
        install_plugin(site, "controllers", "circle", CONTROLLER)
        install_plugin(site, "actuators", "faulty_board", ACTUATOR)
    switches = Switches(site.folder / "faults")
    site.env[VARIABLE] = os.fspath(switches.folder)
    return switches
