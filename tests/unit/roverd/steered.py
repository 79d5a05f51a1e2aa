"""Doubles for what a person steers: a clock that is set, a robot that notes what it is told, collections' episodes."""

from __future__ import annotations

from protocol.spec import Element, RobotSpec

ROVER = RobotSpec(
    "rover",
    (),
    (Element("linear_vel", "m/s", -1, 1),),
    (Element("linear_cmd", "m/s", -0.2, 0.5), Element("angular_cmd", "rad/s", -1.5, 1.5)),
    10.0,
)
ARM = RobotSpec(
    "arm",
    (),
    (Element("base", "rad", -3, 3),),
    (Element("base", "rad", -2.0, 2.0), Element("grip", "", 0.0, 1.0), Element("spin", "rad/s", -1.0, 1.0)),
    10.0,
)


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


class Robot:
    """Notes each command of a human; ``moves`` is False for one that must not."""

    def __init__(self, actions=2):
        self.told = []
        self.moves = True
        self.applied_action = (0.0,) * actions
        self.mode = "train"
        self.e_stop = ""
        self.last_outcome = ""
        self.rates = (10.0, 3.3)
        self.in_episode = False
        self.orders = []
        self.is_allowed = None
        self.verdicts = []

    def human(self, action, seconds, *, locks=False):
        self.told.append((tuple(action), seconds, locks))
        return self.moves

    def let_go(self):
        self.told.append("let go")

    def stop_episode(self, reason):
        self.told.append(reason)
        self.in_episode = False

    def latch_e_stop(self, reason):
        self.e_stop = reason

    def clear_e_stop(self):
        self.e_stop = ""

    @property
    def is_in_episode(self):
        return self.in_episode

    def collect(self, order):
        self.orders.append(order)

    def allow_episode(self, *, is_allowed):
        self.is_allowed = is_allowed

    def finish_episode(self, success):
        if self.in_episode:
            self.verdicts.append(success)
        return self.in_episode
