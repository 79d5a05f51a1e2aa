"""The doctor of a trainerd that does not run: what can be told from outside, and how to start it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from protocol.node.checkup import firewall, machine
from protocol.node.checkup.check import Check, answer_of, gather, judge
from protocol.node.checkup.command import configuration, read_settings
from protocol.node.checkup.listening import listeners
from protocol.node.checkup.systemd import daemon, unit, unit_facts
from protocol.node.reach import is_loopback
from protocol.pairing import PORT_ABOVE_LINK
from trainerd.doctor import gpu, learning, listening, places
from trainerd.options import parse
from trainerd.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def examine_without(problem: str, words: Sequence[str], cause: BaseException | None = None) -> dict[str, Any]:
    """Check what a trainerd would stand on.

    Args:
        problem: why nobody answers.
        words: the command line that trainerd would be started with, such as ``--config FILE``.
        cause: the error below, which tells a daemon that hangs from one that is not there.

    """
    settings, mistakes = read_settings(parse, words, Settings())
    start = " ".join(["trainerd", *words])
    checks = [
        *gather("daemon", lambda: daemon("trainerd", problem, start, cause)),
        *gather("daemon", lambda: unit("trainerd", unit_facts("trainerd"), is_running=False)),
        *gather(
            "daemon",
            lambda: configuration(mistakes, words, "TRAINERD_"),
            lambda: machine.lock("trainerd", settings.state_dir / "lock", settings.state_dir),
        ),
        *places.machine_checks(settings),
        *gather("machine", lambda: listening.other_trainers(os.getpid(), settings.state_dir)),
        *gather("gpu", lambda: gpu.gpu(settings.device, gpu.measure(settings.device))),
        *places.storage_checks(settings),
        *gather("link", lambda: _ports(settings), lambda: _reach(settings), lambda: _firewall(settings)),
        *gather("policy", lambda: learning.converter(machine.installed("rknn-toolkit2"))),
    ]
    return answer_of(checks, is_running=False)


def _numbers(settings: Settings) -> dict[str, int]:
    ports = {"port": settings.port}
    if settings.link.pairing and settings.link.curve:
        ports["link.pairing_port"] = settings.link.pairing_port or (
            settings.port + PORT_ABOVE_LINK if settings.port else 0
        )
    if settings.legacy.enabled:
        ports["legacy.port"] = settings.legacy.port
    return {name: number for name, number in ports.items() if number}


def _ports(settings: Settings) -> Iterator[Check]:
    for name, number in _numbers(settings).items():
        yield from listening.port(name, settings.host, number, listeners(number), is_running=False)


def _reach(settings: Settings) -> Iterator[Check]:
    if is_loopback(settings.host):
        hint = "set host = 0.0.0.0 where a rover is another machine"
        measured = f"host is {settings.host}: this machine only"
        yield judge("reach", measured, "wherever the rovers are", hint, ok=False, is_needed=False)


def _firewall(settings: Settings) -> Iterator[Check]:
    numbers = _numbers(settings).values()
    if numbers:
        yield from firewall.judge_firewall(firewall.read_firewall(), numbers, is_needed=not is_loopback(settings.host))
