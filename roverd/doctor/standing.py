"""The doctor of a roverd that does not run: what can be told from outside, and how to start it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugins.manager import PluginManager
from protocol.errors import RoverError
from protocol.keys import KeyFileError
from protocol.node.checkup.address import judge_reach, reach
from protocol.node.checkup.check import Check, answer_of, gather, judge, note
from protocol.node.checkup.command import configuration, read_settings
from protocol.node.checkup.listening import describe, listeners
from protocol.node.checkup.machine import lock, user
from protocol.node.checkup.systemd import control_socket, daemon, unit, unit_facts
from roverd.assemble import trainer_address
from roverd.doctor import driving, link, places, realtime
from roverd.options import parse
from roverd.pairing import TrustedTrainer
from roverd.selfcheck import calibration
from roverd.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GROUPS = ("robots", "actuators", "tasks")


def examine_without(problem: str, words: Sequence[str], cause: BaseException | None = None) -> dict[str, Any]:
    """Check what a roverd would stand on.

    Args:
        problem: why nobody answers.
        words: the command line that roverd would be started with, such as ``--config FILE``.
        cause: the error below, which tells a daemon that hangs from one that is not there.

    """
    settings, mistakes = read_settings(parse, words, Settings())
    start = " ".join(["roverd", *words])
    facts = unit_facts("roverd")
    is_clocked = settings.control.rate_hz > 0
    checks = [
        *gather(
            "daemon",
            lambda: daemon("roverd", problem, start, cause),
            lambda: unit("roverd", facts, is_running=False),
            lambda: configuration(mistakes, words, "ROVERD_"),
            lambda: control_socket(settings.control_socket),
            lambda: lock("roverd", settings.state_dir / "spool" / "lock", settings.state_dir),
        ),
        *places.machine_checks(is_real=False),
        *gather("realtime", lambda: realtime.permission(facts or {}, is_needed=is_clocked and bool(settings.actuator))),
        *gather("sensors", lambda: devices(settings)),
        *gather("policy", lambda: _selfcheck(settings), lambda: driving.stop(e_stop(settings.state_dir))),
        *gather("link", lambda: _link(settings)),
        *gather("storage", lambda: places.disk(settings.state_dir)),
        *gather("plugins", lambda: _plugins(settings), lambda: _page(settings)),
    ]
    return answer_of(checks, is_running=False)


def e_stop(state_dir: Path) -> str:
    """Return why the emergency stop is latched, which outlives a restart; empty where it is not."""
    try:
        return (state_dir / "e_stop").read_text(errors="replace") or "requested"
    except OSError:
        return ""


def devices(settings: Settings) -> Iterator[Check]:
    """Judge whether this user may open the device files that the settings of the plugins name."""
    named = [
        (f"plugins.{plugin}.{key}", Path(value))
        for plugin, table in settings.plugins.items()
        if isinstance(table, dict)
        for key, value in table.items()
        if isinstance(value, str) and value.startswith("/dev/")
    ]
    for option, path in named:
        yield device(option, path)


def device(option: str, path: Path) -> Check:
    """Judge one device file."""
    if not path.exists():
        hint = "plug it in and look at dmesg | tail; a udev rule gives it a name that stays"
        return judge(option, f"{path} is not there", "a device", hint, ok=False)
    may = os.access(path, os.R_OK | os.W_OK)
    hint = f"sudo usermod -aG dialout,video {user()}, then log in again (a unit: SupplementaryGroups=)"
    return judge(option, f"{path}, {'' if may else 'not '}open to {user()}", "this user may open it", hint, ok=may)


def _selfcheck(settings: Settings) -> Iterator[Check]:
    try:
        found = calibration.load(settings.state_dir / "calibration.json")
    except calibration.CalibrationError as error:
        yield judge("selfcheck", error, "readable", "start roverd, then roverctl selfcheck", ok=False)
        return
    hint = "once roverd runs: roverctl selfcheck"
    expected = "passed, where the robot is not simulated"
    if found is None:
        yield note("selfcheck", "never made", expected, hint)
    else:
        measured = f"{'passed' if found.passed else 'failed'} at {found.at}" + (
            f": {found.fault}" if found.fault else ""
        )
        yield judge("selfcheck", measured, expected, hint, ok=found.passed)


def _link(settings: Settings) -> Iterator[Check]:
    try:
        trust = TrustedTrainer(settings.state_dir / "keys" / "trainer.json")
    except KeyFileError as error:
        yield judge("keys", error, "readable by this user only", "see the message; else roverctl pair HOST", ok=False)
        return
    key = settings.link.trainer_key or trust.public
    if settings.link.curve:
        measured = "paired with a trainer" if key else "not paired"
        yield judge("keys", measured, "paired with a trainer", "start roverd, then roverctl pair HOST", ok=bool(key))
    else:
        yield from link.keys("", "", is_curve=False)
    address = trainer_address(settings.link, trust)
    yield from judge_reach(address, reach(address))


def _plugins(settings: Settings) -> Iterator[Check]:
    """Judge whether the plugins that the settings name can be loaded; none is made."""
    plugins = PluginManager(groups=GROUPS)
    wanted = [(plugins.robot, "robot", settings.robot_name), (plugins.task, "task", settings.task)]
    faults = [fault for find, kind, name in wanted if (fault := _fault(find, kind, name))]
    if settings.actuator and (fault := _fault(plugins.actuator, "actuator", settings.actuator)):
        faults.append(fault)
    measured = "; ".join(faults) or ", ".join(
        name for name in (settings.robot, settings.actuator, settings.task) if name
    )
    yield judge(
        "plugins", measured, "they can be loaded", "install what is missing, or correct the name", ok=not faults
    )


def _fault(find: Any, kind: str, name: str) -> str:
    try:
        find(name)
    except RoverError as error:
        return f"{kind} {name}: {error}"
    return ""


def _page(settings: Settings) -> Iterator[Check]:
    """Judge whether the port of the page for driving is free."""
    number = settings.teleop.port
    if not number or settings.control.rate_hz == 0:
        return
    found = listeners(number)
    hint = f"another program has it: stop it, or set teleop.port (ss -ltnp 'sport = :{number}')"
    measured = f"taken: {describe(found)}" if found else f"{number} is free"
    yield judge("port of the page", measured, "free until roverd starts", hint, ok=not found)
