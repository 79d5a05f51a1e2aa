"""Targets for what a page of the robot, or somebody in its name, may send: messages of the socket, names of hosts."""

from __future__ import annotations

import functools
import json
import math
from types import SimpleNamespace

from protocol.spec import TaskSpec
from roverd.axes import Axes
from roverd.collect import Collecting
from roverd.telemetry import Telemetry
from roverd.teleop import Teleop
from roverd.web.access import Access
from roverd.web.session import Session
from roverd.wheel import Wheel
from tests.unit.roverd.steered import ROVER, Robot

OWNER = "page fuzz"


class NoFile:
    """A collection's file that is never there and cannot be written."""

    def is_file(self):
        return False


def session():
    """Return a session whose page nobody sees, and its robot."""
    robot = Robot()
    wheel = Wheel(robot, Axes(ROVER, (0.0, 0.0), max_speed_mps=1), dead_man_s=0.25)
    teleop = Teleop(
        "rover-1",
        drive=robot,
        wheel=wheel,
        collecting=Collecting(robot, wheel, NoFile(), task="goal", controllers=list),
        telemetry=Telemetry(ROVER, TaskSpec("goal")),
        policies=SimpleNamespace(slot_name=lambda _: "", active=0),
        uplink=SimpleNamespace(state="linked", round_trip_ms=math.nan),
    )
    audited = []
    made = Session(OWNER, teleop, None, None, lambda path, body: audited.append(json.dumps([path, body])))
    return made, robot, wheel


def message(data):
    """Hear a message: only the page's own name gets the wheel, no command leaves the limits, the view is JSON.

    Nothing that a page says clears the emergency stop.
    """
    made, robot, wheel = session()
    wheel.take(OWNER)
    robot.e_stop = "latched"
    made.hear(data[:4096].decode(errors="replace"))
    assert wheel.owner in {"", OWNER}
    assert robot.e_stop
    for told in robot.told:
        if told != "let go":
            assert all(low <= value <= high for value, (low, high) in zip(told[0], LIMITS, strict=True)), told
    json.dumps(made._view(), allow_nan=False)


LIMITS = [(element.low, element.high) for element in ROVER.action]


def message_seeds():
    asked = [
        {"kind": "drive", "t": 1, "seen": 1, "axes": [0.5, -1]},
        {"kind": "drive", "t": 10**400, "axes": [10**400, 0]},
        {"kind": "take", "force": True},
        {"kind": "release"},
        {"kind": "e_stop"},
        {"kind": "clear", "sure": True},
        {"kind": "next"},
        {"kind": "judge", "verdict": "success"},
    ]
    return [json.dumps(each).encode() for each in asked]


@functools.cache
def access():
    return Access("a" * 32, 8081, ("rover.local", "rover.example:443"))


def host(data):
    """Judge a host, an origin, a token and a cookie of anybody: none is known that was not given out."""
    text = data.decode(errors="surrogateescape")
    known = access()
    if known.knows_host(text):
        assert not set("/?#@") & set(text)
        assert text.rstrip("0123456789").endswith(":") or text.lower() == "rover.example"
    if known.knows_origin(text):
        assert text.lower().startswith(("http://", "https://"))
    assert not known.knows_token(text)
    assert not known.knows_cookie(text)


def host_seeds():
    return [
        b"127.0.0.1:8081",
        b"localhost:8081",
        b"[::1]:8081",
        b"rover.example",
        b"http://rover.local:8081",
        b"https://rover.example",
        b"evil.example:8081@localhost:8081",
    ]
