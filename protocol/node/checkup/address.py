"""Does an address answer, and as what: each way in which it does not has its own cause and remedy."""

from __future__ import annotations

import errno
import re
import socket
from typing import TYPE_CHECKING, NamedTuple

from protocol.node.checkup.check import Check, judge

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_S = 2.0
GREETING = b"\xff"
"""The first byte that ZeroMQ says to whoever connects."""
REMEDIES = {
    "refused": (
        "the machine answers, but nothing listens on this port: start trainerd there, or let it listen for others "
        "(host = 0.0.0.0; ss -ltn 'sport = :{port}' must not show 127.0.0.1)"
    ),
    "no route": "the machine cannot be reached: is it on, in the same network, and is {host} its address (ip addr)?",
    "no network": "this machine has no network for that address: ip addr, ip route, nmcli device",
    "timeout": (
        "what is sent to it vanishes: a firewall on the trainer drops it (there: sudo ufw allow {port}/tcp), or the "
        "address is not the trainer's"
    ),
    "no name": "the name {host} is not known here: write the address in link.trainer, or mend DNS",
    "another program": "what listens there is no trainerd: is {port} its port (trainerctl status)?",
    "silent": "what listens there says nothing: is {port} its port, and does trainerd hang (trainerctl status)?",
    "no address": "link.trainer must be like tcp://192.168.1.5:5555",
}
_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:]+):(?P<port>\d+)")


class Reach(NamedTuple):
    """What became of an attempt to connect: ``answers``, or a key of ``REMEDIES``; the error in words beside it."""

    outcome: str
    detail: str = ""


def reach(address: str, timeout_s: float = CONNECT_S) -> Reach:
    """Connect as ZeroMQ would and hear who is there; blocks for at most twice the time, and more for a name."""
    if address.startswith("ipc://"):
        return Reach("answers", "not asked: it is on this machine")
    matched = _TCP.fullmatch(address)
    if matched is None or not 0 < int(matched["port"]) < 1 << 16:
        return Reach("no address")
    try:
        connection = socket.create_connection((matched["host"].strip("[]"), int(matched["port"])), timeout_s)
    except OSError as error:
        return Reach(_outcome(error), (error.strerror or str(error)).lower())
    return _heard(connection, timeout_s)


def _heard(connection: socket.socket, timeout_s: float) -> Reach:
    with connection:
        try:
            word = connection.recv(1)
        except TimeoutError:
            return Reach("silent", f"connected, but not a word within {timeout_s:g} s")
        except OSError as error:
            return Reach("another program", (error.strerror or str(error)).lower())
    return Reach("answers") if word == GREETING else Reach("another program", "it does not speak ZeroMQ")


def _outcome(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "no name"
    if isinstance(error, TimeoutError):
        return "timeout"
    known = {errno.ECONNREFUSED: "refused", errno.ENETUNREACH: "no network"}
    return known.get(error.errno or 0, "no route")


def judge_reach(address: str, found: Reach) -> Iterator[Check]:
    """Say what an outcome means."""
    matched = _TCP.fullmatch(address)
    host, port = (matched["host"], matched["port"]) if matched else (address, "")
    hint = REMEDIES.get(found.outcome, "").format(host=host, port=port)
    measured = f"{address}: {found.outcome}{f', {found.detail}' if found.detail else ''}"
    yield judge("port of the trainer", measured, "a trainer answers", hint, ok=found.outcome == "answers")


def own_address() -> str:
    """Return the address that this machine has towards others, or nothing; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 of RFC 5737: only the route is looked up
        except OSError:
            return ""
        return str(probe.getsockname()[0])
