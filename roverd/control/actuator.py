"""Where control writes its commands: the actuator plugin behind a wall, or nothing for a simulated robot."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from plugins.contracts import Actuator
    from protocol.spec import RobotSpec

REOPEN_S = 1.0


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

    When it refuses an action it is offered the safe one at once. One that could not be made, or failed, is made anew
    after a second, because a cable that was plugged in again is a new device.
    """

    def __init__(self, make: Callable[[], Actuator], tell: Callable[[str], None]) -> None:
        """Take how the device is made, and who is told of a failure (a text) and of its end (an empty one)."""
        self._make, self._tell = make, tell
        self._device: Actuator | None = None
        self._failure = ""
        self._failing_since_s = self._made_s = float("-inf")

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
            return self._failure or "it cannot be opened"
        try:
            device.write(action)
        except Exception as error:  # noqa: BLE001 - the wall around a plugin
            return f"{type(error).__name__}: {error}"
        return None

    def _opened(self) -> Actuator | None:
        now_s = time.monotonic()
        is_due = now_s - self._made_s >= REOPEN_S
        if self._failure and is_due:
            self.close()
        if self._device is None and is_due:
            self._made_s = now_s
            try:
                self._device = self._make()
            except Exception as error:  # noqa: BLE001 - the wall around a plugin
                if not self._failure:
                    self._failure = f"{type(error).__name__}: {error}"
                    self._tell(self._failure)
        return self._device

    def close(self) -> None:
        """Release the device."""
        device, self._device = self._device, None
        if device is not None:
            try:
                device.close()
            except Exception:  # noqa: BLE001 - the wall around a plugin: nothing is left to be done with it
                return
