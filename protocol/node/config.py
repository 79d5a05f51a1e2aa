"""Merge settings from defaults, profiles, a TOML file, the environment and the command line.

Later sources win: defaults < layers in order < file < environment (``ROVERD_PPO__GAMMA``) < ``--set ppo.gamma=0.99``.
A table of numbers from a layer or a file replaces the one below it as a whole, so that the file shows all of it; a
dotted name from the environment or the command line changes one entry. The tables of plugins merge entry by entry.
"""

from __future__ import annotations

import copy
import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from protocol.errors import RoverError
from protocol.node.options import Option, OptionDoc, describe, format_value, option, options, sections

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "ConfigError",
    "Layer",
    "Loaded",
    "OptionDoc",
    "describe",
    "load",
    "option",
    "show",
    "to_toml",
    "validate_table",
]

T = TypeVar("T")


class ConfigError(RoverError):
    """Settings are wrong: the daemon must not start (exit status 2). ``mistakes`` has all of them, one line each."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        """Keep every mistake; the message is one line for each."""
        super().__init__("\n".join(mistakes))
        self.mistakes = list(mistakes)


@dataclass(frozen=True)
class Layer:
    """Settings that come from one named place, such as a profile; ``values`` is nested like the TOML file."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """The merged settings, and for each option by its dotted name the source that had the last word."""

    value: T
    origins: dict[str, str]


def load(
    cls: type[T],
    *,
    layers: Sequence[Layer] = (),
    file: Path | None = None,
    env_prefix: str,
    environ: Mapping[str, str],
    overrides: Sequence[str] = (),
) -> Loaded[T]:
    """Merge all sources into one frozen settings object.

    Args:
        cls: a frozen dataclass of options and sections.
        layers: from the weakest to the strongest.
        file: a TOML file; one that is missing is a mistake.
        env_prefix: such as ``ROVERD_``; two underscores stand between levels.
        environ: usually ``os.environ``.
        overrides: what was given with ``--set``, each like ``ppo.gamma=0.99``.

    Raises:
        ConfigError: with every mistake of every source.

    """
    merge = _Merge(cls)
    for layer in layers:
        merge.add_table(layer.values, layer.name)
    if file is not None:
        merge.add_file(file)
    prefix = env_prefix.rstrip("_") + "_"
    for name in sorted(environ):
        if name.startswith(prefix):
            merge.add_text(name[len(prefix) :].lower().replace("__", "."), environ[name], f"environment {name}")
    for override in overrides:
        dotted, equals, text = override.partition("=")
        origin = f"command line --set {override}"
        if equals:
            merge.add_text(dotted.strip(), text, origin)
        else:
            merge.mistakes.append(f"{origin}: no value; write --set {dotted}=VALUE")
    value = merge.build(cls)
    return Loaded(value, merge.origins)


def validate_table(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Check a plugin's own table and make the plugin's settings object from it.

    Args:
        cls: the plugin's frozen dataclass of options.
        table: as it stands in the settings.
        where: what the mistakes begin with, such as ``plugins.goal``.

    Raises:
        ConfigError: with every mistake of the table.

    """
    merge = _Merge(cls)
    merge.add_table(table, where)
    return merge.build(cls, where)


def check_plugin_tables(tables: Iterable[str], known: Sequence[str], complaint: str) -> None:
    """Raise ConfigError for each ``[plugins.<name>]`` of a plugin that is not ``known``, with the nearest name."""
    mistakes = []
    for name in tables:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean plugins.{near[0]}?" if near else f"there are {', '.join(known)}"
            mistakes.append(f"plugins.{name}: {complaint}; {hint}")
    if mistakes:
        raise ConfigError(mistakes)


def show(loaded: Loaded[Any], *, with_origin: bool = False) -> list[tuple[str, str, str]]:
    """List every option as (name, value, origin); the origin is empty where it is not asked for."""
    rows = []
    for name in options(type(loaded.value)):
        value = loaded.value
        for part in name.split("."):
            value = getattr(value, part)
        rows.append((name, format_value(value), loaded.origins[name] if with_origin else ""))
    return rows


def to_toml(loaded: Loaded[Any], *, with_origin: bool = False) -> str:
    """Write the settings as a TOML file that gives the same settings again; unset options are comments."""
    lines: list[str] = []
    section = ""
    rows = sorted(show(loaded, with_origin=with_origin), key=lambda row: row[0].rpartition(".")[0])
    for name, value, origin in rows:
        head, _, leaf = name.rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        comment = f"  # {origin}" if origin else ""
        lines.append(f"# {leaf} is not set{comment}" if value == "none" else f"{leaf} = {value}{comment}")
    return "\n".join(lines).lstrip("\n") + "\n"


class _Merge:
    """The values, origins and mistakes that are collected on the way from the weakest to the strongest source."""

    def __init__(self, cls: type[Any]) -> None:
        self.options = options(cls)
        self.sections = {name for name, _ in sections(cls)}
        self.values = {name: each.default() for name, each in self.options.items() if each.has_default}
        self.origins = dict.fromkeys(self.options, "default")
        self.mistakes: list[str] = []

    def add_file(self, path: Path) -> None:
        """Add a TOML file."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            self.mistakes.append(f"{path}: not valid TOML: {_lower_first(str(error))}")
        except UnicodeDecodeError as error:
            self.mistakes.append(f"{path}: not valid UTF-8 at byte {error.start}")
        except OSError as error:
            self.mistakes.append(f"{path}: {_lower_first(error.strerror or str(error))}")
        else:
            self.add_table(table, str(path))

    def add_table(self, table: Mapping[str, Any], origin: str, prefix: str = "") -> None:
        """Add a nested table: an unknown name is a mistake, a section is entered, an option is set."""
        for key, value in table.items():
            name = f"{prefix}{key}"
            if name in self.options:
                self._set(self.options[name], value, origin, is_text=False)
            elif name not in self.sections:
                self.mistakes.append(f"{origin}: no option {name}{self._hint(name)}")
            elif isinstance(value, Mapping):
                self.add_table(value, origin, f"{name}.")
            else:
                self.mistakes.append(f"{origin}: {name} is a section, not an option; write {name}.OPTION")

    def add_text(self, name: str, text: str, origin: str) -> None:
        """Add one dotted name with its value as text; the name may go on inside a table."""
        if name in self.options:
            self._set(self.options[name], text, origin, is_text=True)
            return
        for each in self.options.values():
            if each.is_table and name.startswith(f"{each.name}."):
                self._set_entry(each, name[len(each.name) + 1 :], text, origin)
                return
        if name in self.sections:
            self.mistakes.append(f"{origin}: {name} is a section, not an option; write {name}.OPTION")
        else:
            self.mistakes.append(f"{origin}: no option {name}{self._hint(name)}")

    def build(self, cls: type[T], where: str = "settings") -> T:
        """Make the frozen object, or raise every mistake at once."""
        self.mistakes += [f"{where}: {name} must be given" for name in self.options if name not in self.values]
        if self.mistakes:
            raise ConfigError(self.mistakes)
        value: T = self._make(cls, "", where)
        if self.mistakes:
            raise ConfigError(self.mistakes)
        return value

    def _make(self, cls: type[Any], prefix: str, where: str) -> Any:
        names = {name.removeprefix(prefix).split(".")[0] for name in self.options if name.startswith(prefix)}
        kinds = dict(sections(cls))
        arguments = {
            name: self._make(kinds[name], f"{prefix}{name}.", where)
            if is_dataclass(kinds.get(name))
            else self.values[f"{prefix}{name}"]
            for name in names
        }
        try:
            return cls(**arguments)
        except ValueError as error:  # a rule between several options, from the class's own __post_init__
            self.mistakes.append(f"{where}: {prefix.rstrip('.')}{': ' if prefix else ''}{error}")
            return None

    def _set(self, each: Option, value: Any, origin: str, *, is_text: bool) -> None:
        try:
            converted = each.convert(value, is_text=is_text)
        except ValueError as error:
            self.mistakes.append(f"{origin}: {each.name} {error}")
            return
        if each.is_open_table:
            converted = _merged(self.values.get(each.name, {}), converted)
        self.values[each.name] = converted
        self.origins[each.name] = origin

    def _set_entry(self, each: Option, rest: str, text: str, origin: str) -> None:
        if each.is_open_table:
            nested: Any = _toml_or_text(text)
            for part in reversed(rest.split(".")):
                nested = {part: nested}
            self._set(each, nested, origin, is_text=False)
            return
        try:
            entry = each.convert_entry(text)
        except ValueError as error:
            self.mistakes.append(f"{origin}: {each.name}.{rest} {error}")
            return
        self.values[each.name] = {**self.values.get(each.name, {}), rest: entry}
        self.origins[each.name] = origin

    def _hint(self, name: str) -> str:
        names = [*self.options, *filter(None, self.sections)]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
        if not near:
            leaf = name.rpartition(".")[2]
            near = [each for each in names if each.rpartition(".")[2] == leaf][:1]
        return f"; did you mean {near[0]}?" if near else ""


def _toml_or_text(text: str) -> Any:
    """Read a text as a TOML value where it is one, so that a plugin gets numbers; else leave it a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        has_both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if has_both else copy.deepcopy(value)
    return merged


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
