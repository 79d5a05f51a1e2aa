"""Find the plugins that are installed, give them by name, and say how each is doing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from plugins import hookspecs
from plugins.contracts import (
    ActuatorPlugin,
    ControllerPlugin,
    Descriptor,
    EncoderPlugin,
    RewardTerm,
    RobotPlugin,
    TaskPlugin,
)
from plugins.guard import Guard
from protocol.errors import RoverError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

T = TypeVar("T")

KINDS: dict[str, type[Any]] = {
    "robots": RobotPlugin,
    "actuators": ActuatorPlugin,
    "tasks": TaskPlugin,
    "rewards": RewardTerm,
    "encoders": EncoderPlugin,
    "controllers": ControllerPlugin,
}
"""What each group's plugins provide; its entry-point group is ``roverloop.<group>``, its hook ``provide_<group>``."""


class PluginError(RoverError):
    """A plugin is not there, is there twice, or does not keep to the hooks."""


@dataclass
class Entry:
    """One plugin (``error`` empty) or one that could not be loaded, and where it comes from."""

    group: str
    name: str
    distribution: str = ""
    version: str = ""
    error: str = ""
    descriptor: Descriptor | None = None

    @property
    def origin(self) -> str:
        """The distribution for people; modules registered by hand have none."""
        return f"{self.distribution} {self.version}" if self.distribution else "a module registered by hand"


class PluginManager:
    """The plugins of some groups.

    A plugin that cannot be imported, names an unknown hook or whose hook raises is listed with its error and does not
    disturb the others. Two plugins of one name are an error: nobody could tell which one runs.
    """

    def __init__(self, groups: Iterable[str] = tuple(KINDS), *, installed: bool = True) -> None:
        """Load the entry points of ``groups``; with ``installed`` false only what ``register`` brings."""
        self._managers = {group: _pluggy_manager() for group in groups}
        self._entries: dict[tuple[str, str], Entry] = {}
        self._guards: list[Guard[Any]] = []
        if installed:
            for group in self._managers:
                for point in entry_points(group=f"roverloop.{group}"):
                    self._load(group, point)

    def register(self, module: ModuleType | object, name: str = "") -> None:
        """Add a module that no distribution declares.

        Raises:
            PluginError: it implements no hook of the groups at hand, an unknown one, or a name that is taken.

        """
        label = name or getattr(module, "__name__", repr(module))
        found = 0
        for group in self._managers:
            try:
                descriptors = self._provided(group, module, label)
            except Exception as error:
                raise PluginError(f"plugin {label}: {error}") from error
            for descriptor in descriptors:
                self._add(Entry(group, descriptor.name, descriptor=descriptor))
                found += 1
        if not found:
            raise PluginError(f"plugin {label}: provides nothing for {', '.join(self._managers)}")

    def robot(self, name: str) -> RobotPlugin:
        """Return a robot by name, or raise PluginError naming the nearest and all there are."""
        return self._find("robots", name, RobotPlugin)

    def actuator(self, name: str) -> ActuatorPlugin:
        """Return an actuator by name, or raise PluginError."""
        return self._find("actuators", name, ActuatorPlugin)

    def task(self, name: str) -> TaskPlugin:
        """Return a task by name, or raise PluginError."""
        return self._find("tasks", name, TaskPlugin)

    def reward(self, name: str) -> RewardTerm:
        """Return a reward term by name, or raise PluginError."""
        return self._find("rewards", name, RewardTerm)

    def encoder(self, name: str) -> EncoderPlugin:
        """Return an encoder by name, or raise PluginError."""
        return self._find("encoders", name, EncoderPlugin)

    def controller(self, name: str) -> ControllerPlugin:
        """Return a controller by name, or raise PluginError."""
        return self._find("controllers", name, ControllerPlugin)

    def names(self, group: str) -> list[str]:
        """Return the names of the usable plugins of a group, sorted."""
        return sorted(name for (of, name), entry in self._entries.items() if of == group and entry.descriptor)

    def guard(self, group: str, name: str, function: Callable[..., T], *, default: T, budget_ms: float) -> Guard[T]:
        """Wrap a function of a plugin; what happens to it shows in ``listing``."""
        guard = Guard(group, name, function, default=default, budget_ms=budget_ms)
        self._guards.append(guard)
        return guard

    def listing(self) -> list[dict[str, Any]]:
        """Describe every plugin for people and for JSON; ``state`` is ready, disabled or failed."""
        return [self._described(entry) for _, entry in sorted(self._entries.items(), key=lambda pair: pair[0])]

    def _described(self, entry: Entry) -> dict[str, Any]:
        guards = [guard for guard in self._guards if (guard.group, guard.name) == (entry.group, entry.name)]
        is_disabled = any(guard.is_disabled for guard in guards)
        errors = [guard.last_error for guard in guards if guard.last_error]
        return {
            "group": entry.group,
            "name": entry.name,
            "distribution": entry.distribution,
            "version": entry.version,
            "state": "failed" if entry.error else "disabled" if is_disabled else "ready",
            "calls": sum(guard.calls for guard in guards),
            "failures": sum(guard.failures for guard in guards),
            "overruns": sum(guard.overruns for guard in guards),
            "last_error": entry.error or (errors[-1] if errors else ""),
            "max_ms": round(1000 * max((guard.max_s for guard in guards), default=0.0), 3),
        }

    def _load(self, group: str, point: EntryPoint) -> None:
        distribution, version = (point.dist.name, point.dist.version) if point.dist else ("", "")
        try:
            descriptors = self._provided(group, point.load(), point.name)
        except Exception as error:  # noqa: BLE001 - the wall around a plugin
            reason = f"{type(error).__name__}: {error}"
            self._add(Entry(group, point.name, distribution, version, error=reason))
            return
        for descriptor in descriptors:
            self._add(Entry(group, descriptor.name, distribution, version, descriptor=descriptor))

    def _provided(self, group: str, module: object, label: str) -> list[Descriptor]:
        """Register a module with pluggy and return what its hook of the group gives."""
        manager = self._managers[group]
        registered = manager.register(module, name=label)
        try:
            manager.check_pending()
            descriptors: list[Descriptor] = []
            for implementation in getattr(manager.hook, f"provide_{group}").get_hookimpls():
                if implementation.plugin_name == registered:
                    descriptors += implementation.function()
        except Exception:
            manager.unregister(name=label)
            raise
        wrong = [descriptor for descriptor in descriptors if not isinstance(descriptor, KINDS[group])]
        if wrong:
            manager.unregister(name=label)
            raise PluginError(f"provide_{group} returned {wrong[0]!r}, expected {KINDS[group].__name__}")
        return descriptors

    def _add(self, entry: Entry) -> None:
        there = self._entries.get((entry.group, entry.name))
        if there is not None:
            raise PluginError(
                f"{entry.group}: {entry.name} is provided twice, by {there.origin} and by {entry.origin}: "
                "uninstall or rename one"
            )
        self._entries[entry.group, entry.name] = entry

    def _find(self, group: str, name: str, kind: type[T]) -> T:
        entry = self._entries.get((group, name))
        if entry is not None and isinstance(entry.descriptor, kind):
            return entry.descriptor
        if entry is not None:
            raise PluginError(f"{group}: {name} of {entry.origin} could not be loaded: {entry.error}")
        if group not in self._managers:
            raise PluginError(f"{group}: this program loads no plugins of that group")
        names = self.names(group)
        nearest = difflib.get_close_matches(name, names, n=1)
        guess = f"; did you mean {nearest[0]}?" if nearest else ""
        raise PluginError(f"{group}: no plugin {name!r}{guess} there are {', '.join(names) or 'none'}")


def _pluggy_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("roverloop")
    manager.add_hookspecs(hookspecs)
    return manager
