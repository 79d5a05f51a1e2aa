"""Where control writes its commands: the actuator plugin behind a wall, or nothing for a simulated robot."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from plugins.contracts import Actuator
    from protocol.spec import RobotSpec

REOPEN_S = 1.0
EAGER_S = 1.0
"""A device that was just taken over may still be busy: for so long it is tried on every write."""


class SimulatedActuator:
    """The simulator's actuator: it lives in roverd and is moved by APPLIED, so there is nothing to write."""

    def write(self, action: Sequence[float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def load(config: Mapping[str, Any], spec: RobotSpec) -> Callable[[], Actuator]:
    """Return how the actuator of control's configuration is made; its modules are imported now.

    Raises:
        PluginError: there is no such plugin.
        ConfigError: its settings are wrong.

    """
    name = str(config["actuator"])
    if not name:
        return SimulatedActuator
    from plugins.manager import PluginManager  # noqa: PLC0415 - a robot without an actuator plugin starts sooner
    from protocol.node.config import validate_table  # noqa: PLC0415

    plugin = PluginManager(groups=("actuators",)).actuator(name)
    settings = validate_table(plugin.settings, dict(config["actuator_settings"]), f"[plugins.{name}]")
    return lambda: plugin.create(settings, spec)


class GuardedActuator:
    """Write to a device that may fail: what it refuses is told once, and tried again on the next tick.

    When it refuses an action it is offered the safe one at once. One that failed is made anew every second, because a
    cable that was plugged in again is a new device; in a thread, for that may take longer than a tick.
    """

    def __init__(self, make: Callable[[], Actuator], tell: Callable[[str], None]) -> None:
        """Take how the device is made, and who is told of a failure (a text) and of its end (an empty one)."""
        self._make, self._tell = make, tell
        self._device: Actuator | None = None
        self._failure = ""
        self._first_s = self._made_s = float("-inf")
        self._opening_error = ""
        self._thread: threading.Thread | None = None

    def write(self, action: Sequence[float], safe: Sequence[float]) -> bool:
        """Command the device; return False where it did not take the action (it may have taken the safe one)."""
        error = self._try(action)
        if error is None:
            if self._failure:
                self._failure = ""
                self._tell("")
            return True
        if not self._failure:
            self._failure = error
            self._tell(error)
        if tuple(action) != tuple(safe):
            self._try(safe)
        return False

    def _try(self, action: Sequence[float]) -> str | None:
        device = self._opened()
        if device is None:
            return self._opening_error or "it is being opened"
        try:
            device.write(action)
        except Exception as error:  # noqa: BLE001 - the wall around a plugin
            return f"{type(error).__name__}: {error}"
        return None

    def _opened(self) -> Actuator | None:
        """Return the device, made now where it is young and in the background later; None while there is none."""
        if self._thread is not None and self._thread.is_alive():
            return None
        now_s = time.monotonic()
        if self._first_s == float("-inf"):
            self._first_s = now_s
        is_young = now_s - self._first_s < EAGER_S
        if self._device is None and is_young:
            self._open()
        elif (self._failure or self._device is None) and now_s - self._made_s >= REOPEN_S:
            self._made_s = now_s
            self.close()
            self._thread = threading.Thread(target=self._open, name="actuator", daemon=True)
            self._thread.start()
            return None
        return self._device

    def _open(self) -> None:
        self._made_s = time.monotonic()
        try:
            self._device = self._make()
        except Exception as error:  # noqa: BLE001 - the wall around a plugin
            self._opening_error = f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """Release the device."""
        device, self._device = self._device, None
        if device is not None:
            try:
                device.close()
            except Exception:  # noqa: BLE001 - the wall around a plugin: nothing is left to be done with it
                return
