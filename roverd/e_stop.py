"""The emergency stop: latched until somebody clears it, also through a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.bundle import write_atomic
from protocol.node.log import get_logger
from roverd.control import wire

if TYPE_CHECKING:
    from pathlib import Path

    from roverd.controls import Controls

log = get_logger()


class EStop:
    """Tell control to command the safe action until it is cleared; the file remembers why."""

    def __init__(self, file: Path, control: Controls) -> None:
        """Latch again what was latched when roverd ended."""
        self._file, self._control = file, control
        self.reason = ""
        """Why the robot is stopped; empty where it is not."""
        if file.is_file():
            self.latch(file.read_text(errors="replace"))

    def latch(self, reason: str) -> None:
        """Command the safe action until cleared."""
        self.reason = reason or "requested"
        self._control.send(bytes([wire.E_STOP]))
        log.warning("e_stop.latched", reason=self.reason, hint="roverctl clear lets the robot drive again")
        try:
            write_atomic(self._file, self.reason.encode())  # a restart does not release it
        except OSError as error:  # a full disk must not keep the robot from stopping
            hint = "it holds until roverd starts again; free space"
            log.error("e_stop.unwritten", error=str(error), hint=hint)  # noqa: TRY400 - no trace for a full disk

    def clear(self) -> None:
        """Release it, in the file as well."""
        self.reason = ""
        self._file.unlink(missing_ok=True)
        self._control.send(bytes([wire.CLEAR]))
        log.info("e_stop.cleared")
