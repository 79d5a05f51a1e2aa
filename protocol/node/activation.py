"""Take over the sockets that systemd opened for this process (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket

FIRST_FD = 3


def inherited(name: str) -> socket.socket | None:
    """Return the listening Unix socket that the socket unit calls ``name`` (FileDescriptorName=), or None without one.

    To be called once, before any child is started: children must not take the socket for theirs.
    """
    environ = os.environ
    pid, count, names = (environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return None
    found = None
    for fd, each in zip(range(FIRST_FD, FIRST_FD + int(count)), names.split(":"), strict=False):
        os.set_inheritable(fd, False)
        if each == name and found is None:
            found = _listening(fd)
    return found


def _listening(fd: int) -> socket.socket | None:
    listener = socket.socket(fileno=fd)
    is_stream = (listener.family, listener.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
    if not is_stream or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        return None
    listener.setblocking(False)
    return listener
