"""The warm spare of control: imported, configured, punctual, and asleep until the one that drives is gone or hangs.

It watches by itself, so that neither a busy nor a dead roverd delays it: control beats on a socket of theirs at least
every 20 ms. Its end means that control is dead; silence that it hangs, and then it is killed first, by its pidfd, so
that two never drive. What the spare does at once is to stop the robot; roverd then tells it the state that is latched,
and brings the policies' sockets.
"""

from __future__ import annotations

import select
import signal
import time
from typing import TYPE_CHECKING

from roverd.control import wire

if TYPE_CHECKING:
    import socket

    from roverd.control.process import Control

SILENCE_S = 0.08
SILENCE_WITHOUT_FIFO_S = 0.12
"""An ordinary process may be made to wait by others for so long without being ill."""
OWN_STALL = 0.5
"""A wait that took this share longer than asked for: this process stood still itself, so silence means nothing."""
FAREWELL_S = 0.1
FIRST_BEAT_S = 2.0
"""roverd brings control its end of the socket once the spare serves; one that never beats then is ill."""
GONE_S = 0.05
"""How long a killed process may take until its devices are closed; one that sleeps in a driver takes longer."""
UNKNOWN_TICKS = 10_000
"""Numbers that are skipped where control never said where it was: none may be used twice."""


class Spare:
    """Wait for the end of control, then be it."""

    def __init__(
        self, control: Control, link: socket.socket, beat: socket.socket, pid_fd: int, *, is_punctual: bool
    ) -> None:
        """Take the control that is to run, its link, the socket that control beats on, and control's pidfd."""
        self._control, self._link, self._beat_socket, self._pid_fd = control, link, beat, pid_fd
        self._silence_s = SILENCE_S if is_punctual else SILENCE_WITHOUT_FIFO_S
        self._beat = wire.Beat(UNKNOWN_TICKS, UNKNOWN_TICKS)
        self._has_heard = False
        beat.setblocking(False)

    def run(self) -> None:
        """Return when roverd is gone, or after having driven."""
        reason = self._wait()
        if reason:
            self._kill()
            self._control.take_over(self._beat, reason)
            self._control.run()

    def _wait(self) -> str:
        """Return why control must be replaced, or an empty text when roverd is gone and control went with it."""
        while True:
            began_s = time.monotonic()
            timeout_s = self._silence_s if self._has_heard else FIRST_BEAT_S
            ready, _, _ = select.select([self._link, self._beat_socket], [], [], timeout_s)
            if not ready and time.monotonic() - began_s < timeout_s * (1 + OWN_STALL):
                return "hung"
            if self._beat_socket in ready and not self._listen():
                return "" if self._is_roverd_gone() else "died"
            if self._link in ready:
                order = self._order()
                if order == wire.TOOK_OVER:
                    return "died"
                if order == wire.STAND_DOWN:
                    return ""
                if order is None:
                    return "" if self._is_farewell() else "hung"

    def _listen(self) -> bool:
        """Take the newest beat; return False at the end of the socket."""
        while True:
            try:
                message = self._beat_socket.recv(wire.MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not message:
                return False
            self._beat, self._has_heard = wire.unpack_beat(message), True

    def _order(self) -> int | None:
        """Read roverd's link: the kind of its message, None at its end."""
        try:
            message = self._link.recv(wire.MAX_MESSAGE_BYTES)
        except OSError:
            return None
        if len(message) > 1 and message[0] == wire.TOOK_OVER:
            self._beat = wire.unpack_beat(message[1:])
        return message[0] if message else None

    def _is_roverd_gone(self) -> bool:
        """After the end of control: say whether roverd ended too, or stopped both."""
        ready, _, _ = select.select([self._link], [], [], 0)
        return bool(ready) and self._order() is None

    def _is_farewell(self) -> bool:
        """After the end of roverd: give control a moment to stop the robot and go; one that hangs cannot."""
        end_s = time.monotonic() + FAREWELL_S
        while (left_s := end_s - time.monotonic()) > 0:
            ready, _, _ = select.select([self._beat_socket], [], [], left_s)
            if ready and not self._listen():
                return True
        return False

    def _kill(self) -> None:
        """End control for sure, and give the kernel a moment to close its devices: two must not hold them."""
        try:
            signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)
        except OSError:  # it is gone already
            return
        select.select([self._pid_fd], [], [], GONE_S)
