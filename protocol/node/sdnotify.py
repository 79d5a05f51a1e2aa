"""Tell systemd how the daemon is; without systemd every call does nothing and returns False."""

from __future__ import annotations

import os
import socket


def ready() -> bool:
    """Say that start-up is complete."""
    return notify("READY=1")


def stopping() -> bool:
    """Say that the daemon began to stop."""
    return notify("STOPPING=1")


def status(text: str) -> bool:
    """Set the line that ``systemctl status`` shows."""
    return notify("STATUS=" + text.replace("\n", " "))


def watchdog() -> bool:
    """Say that the daemon is alive; due at least every ``watchdog_interval_s``."""
    return notify("WATCHDOG=1")


def watchdog_limit(seconds: float) -> bool:
    """Have systemd wait so long for the next ``watchdog``, in place of the unit's ``WatchdogSec``."""
    return notify(f"WATCHDOG_USEC={int(seconds * 1e6)}")


def trip() -> bool:
    """Ask to be ended as if the watchdog had not been fed: at once, with the traces that SIGABRT leaves."""
    return notify("WATCHDOG=trigger")


def watchdog_interval_s() -> float | None:
    """Give half of the unit's ``WatchdogSec``, or None where the unit has no watchdog for this process."""
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    is_for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(limit_us) / 2e6 if limit_us.isdigit() and is_for_us else None


def notify(message: str) -> bool:
    """Send one message in the form of sd_notify(3); True when it was sent."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(message.encode(), address)
        except OSError:  # systemd went away: nobody is left to be told
            return False
    return True
