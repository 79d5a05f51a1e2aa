"""Tell systemd when roverd serves, and then that its loop is alive."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from protocol.node import sdnotify

if TYPE_CHECKING:
    from protocol.node.socket import ControlSocket
    from roverd.drive import Drive


class Readiness:
    """Service: say READY once the control socket answers, then feed the watchdog while driving is alive."""

    name = "readiness"

    def __init__(self, socket: ControlSocket, drive: Drive) -> None:
        self._socket, self._drive = socket, drive

    async def run(self) -> None:
        """Go on until cancelled."""
        await self._socket.listening.wait()
        sdnotify.ready()
        interval_s = sdnotify.watchdog_interval_s()
        while interval_s is not None:
            if self._drive.is_alive:
                sdnotify.watchdog()
            await asyncio.sleep(interval_s)
        await asyncio.Event().wait()
