"""The options of a settings class: how one is declared, converted from text, and checked.

A settings class is a frozen dataclass whose fields are options or further settings classes (sections).
"""

from __future__ import annotations

import math
import re
import types
import typing
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True)
class OptionDoc:
    """One option as people read it."""

    name: str
    type: str
    default: str
    help: str
    limits: str


@dataclass(frozen=True)
class Option:
    """One leaf of a settings class: its dotted name, its type and the field that declares it."""

    name: str
    kind: Any
    field: Field[Any]

    @property
    def is_open_table(self) -> bool:
        """True for ``dict[str, Any]``: a table whose content somebody else validates."""
        return typing.get_origin(self.kind) is dict and typing.get_args(self.kind)[1] is Any

    @property
    def is_table(self) -> bool:
        """True where a dotted name may go on behind the option's own name."""
        return typing.get_origin(self.kind) is dict

    @property
    def has_default(self) -> bool:
        """False where somebody has to give a value."""
        return self.field.default is not MISSING or self.field.default_factory is not MISSING

    def default(self) -> Any:
        """Make the default value."""
        if self.field.default_factory is not MISSING:
            return self.field.default_factory()
        return self.field.default

    def convert(self, value: Any, *, is_text: bool) -> Any:
        """Turn a TOML value or a text into the option's type and check its limits.

        Raises:
            ValueError: the rest of a sentence that begins with the option's name, as in "must be at most 1".

        """
        converted = _convert(self.kind, value, is_text=is_text)
        for single in _singles(converted):
            _check(single, self.field.metadata)
        return converted

    def convert_entry(self, text: str) -> Any:
        """Turn a text into one entry of a table option and check its limits, as ``convert`` does."""
        entry = _convert(typing.get_args(self.kind)[1], text, is_text=True)
        _check(entry, self.field.metadata)
        return entry


def option(
    default: Any = MISSING,
    *,
    help: str,  # noqa: A002 - the word that argparse and every reader uses
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
    pattern: str | None = None,
) -> Any:
    """Declare one option (or, with a settings class as the default, one section) of a settings class.

    Args:
        default: the value, or a callable that makes one (a list, a table, a section). Without it a value must be given.
        help: one line for people.
        low: smallest value; for lists and tables of every entry.
        high: largest value.
        choices: the only values that are allowed.
        pattern: a regular expression that the whole text must match.

    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "pattern": pattern}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, (dict, list, set)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def sections(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, type[Any]]]:
    """List the sections of a settings class, the class itself first (with an empty name)."""
    yield prefix, cls
    kinds = typing.get_type_hints(cls)
    for each in fields(cls):
        if is_dataclass(kinds[each.name]):
            yield from sections(kinds[each.name], _join(prefix, each.name))


def options(cls: type[Any]) -> dict[str, Option]:
    """List every option of a settings class by its dotted name, in the order of declaration."""
    return {each.name: each for each in _walk(cls, "")}


def describe(cls: type[Any]) -> list[OptionDoc]:
    """Describe every option for the reference and for ``config show``."""
    docs = []
    for each in options(cls).values():
        default = format_value(each.default()) if each.has_default else "(required)"
        help_text = each.field.metadata.get("help", "")
        docs.append(OptionDoc(each.name, _type_text(each.kind), default, help_text, _limits_text(each.field.metadata)))
    return docs


def format_value(value: Any) -> str:
    """Write a value as TOML does; None, which TOML lacks, is written as ``none``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, Path)):
        escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(format_value(each) for each in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{_format_key(key)} = {format_value(each)}" for key, each in value.items())
        return "{ " + ", ".join(pairs) + " }" if value else "{}"
    return repr(value)


def _format_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else format_value(key)


def _walk(cls: type[Any], prefix: str) -> Iterator[Option]:
    kinds = typing.get_type_hints(cls)
    for each in fields(cls):
        name = _join(prefix, each.name)
        if is_dataclass(kinds[each.name]):
            yield from _walk(kinds[each.name], name)
        else:
            yield Option(name, kinds[each.name], each)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _optional_of(kind: Any) -> Any | None:
    """Give T for Optional[T], and None for every other type."""
    if typing.get_origin(kind) not in {Union, types.UnionType}:
        return None
    rest = [each for each in typing.get_args(kind) if each is not type(None)]
    return rest[0] if len(rest) == 1 else None


def _convert(kind: Any, value: Any, *, is_text: bool) -> Any:
    inner = _optional_of(kind)
    if inner is not None:
        if value is None or (is_text and value.lower() in {"none", ""}):
            return None
        return _convert(inner, value, is_text=is_text)
    if kind in _SCALARS:
        return _SCALARS[kind](value, is_text)
    if typing.get_origin(kind) is tuple:
        return _convert_list(kind, value, is_text=is_text)
    if typing.get_origin(kind) is dict:
        return _convert_table(kind, value, is_text=is_text)
    raise TypeError(f"settings: options of type {kind} are not supported")


def _convert_list(kind: Any, value: Any, *, is_text: bool) -> tuple[Any, ...]:
    entry, *rest = typing.get_args(kind)
    if is_text:
        inside = value.strip().removeprefix("[").removesuffix("]")
        value = [part.strip().strip("\"'") for part in inside.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list, not {value!r}")  # noqa: TRY004 - one kind of error for every wrong value
    if rest != [...]:
        raise TypeError(f"settings: options of type {kind} are not supported, only tuple[T, ...]")
    return tuple(_convert(entry, each, is_text=is_text) for each in value)


def _convert_table(kind: Any, value: Any, *, is_text: bool) -> dict[str, Any]:
    entry = typing.get_args(kind)[1]
    if is_text:
        inside = value.strip().removeprefix("{").removesuffix("}")
        pairs = [part.partition("=") for part in inside.split(",") if part.strip()]
        if any(not middle for _, middle, _ in pairs):
            raise ValueError(f"must be a table like name=1,other=2, not {value!r}")
        value = {key.strip(): text.strip() for key, _, text in pairs}
    if not isinstance(value, dict):
        raise ValueError(f"must be a table, not {value!r}")  # noqa: TRY004 - one kind of error for every wrong value
    if entry is Any:
        return dict(value)
    return {key: _convert(entry, each, is_text=is_text) for key, each in value.items()}


def _as_bool(value: Any, is_text: bool) -> bool:  # noqa: FBT001 - called through the table below
    if isinstance(value, bool):
        return value
    if is_text and value.strip().lower() in _TRUE | _FALSE:
        return value.strip().lower() in _TRUE
    raise ValueError(f"must be true or false, not {value!r}")


def _as_int(value: Any, is_text: bool) -> int:  # noqa: FBT001
    try:
        if is_text:
            return int(value)
    except ValueError as error:
        raise ValueError(f"must be a whole number, not {value!r}") from error
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"must be a whole number, not {value!r}")


def _as_float(value: Any, is_text: bool) -> float:  # noqa: FBT001
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or isinstance(value, str) != is_text:
        raise ValueError(f"must be a number, not {value!r}")
    try:
        number = float(value)
    except ValueError as error:
        raise ValueError(f"must be a number, not {value!r}") from error
    if math.isnan(number):
        raise ValueError("must be a number, not NaN")
    return number


def _as_str(value: Any, is_text: bool) -> str:  # noqa: ARG001, FBT001
    if not isinstance(value, str):
        raise ValueError(f"must be a text in quotes, not {value!r}")  # noqa: TRY004
    return value


def _as_path(value: Any, is_text: bool) -> Path:  # noqa: FBT001
    return value if isinstance(value, Path) else Path(_as_str(value, is_text)).expanduser()


_SCALARS: dict[Any, Any] = {bool: _as_bool, int: _as_int, float: _as_float, str: _as_str, Path: _as_path}


def _singles(value: Any) -> Iterator[Any]:
    """List what limits apply to: the entries of lists and tables, else the value itself."""
    if isinstance(value, tuple):
        for each in value:
            yield from _singles(each)
    elif isinstance(value, dict):
        yield from value.values()
    elif value is not None:
        yield value


def _check(value: Any, metadata: Any) -> None:
    low, high, choices, pattern = (metadata.get(key) for key in ("low", "high", "choices", "pattern"))
    if low is not None and value < low:
        raise ValueError(f"must be at least {low:g}")
    if high is not None and value > high:
        raise ValueError(f"must be at most {high:g}")
    if choices is not None and value not in choices:
        raise ValueError(f"must be one of {', '.join(map(str, choices))}, not {value!r}")
    if pattern is not None and not re.fullmatch(pattern, str(value)):
        raise ValueError(f"must match {pattern}, not {value!r}")


def _limits_text(metadata: Any) -> str:
    low, high, choices, pattern = (metadata.get(key) for key in ("low", "high", "choices", "pattern"))
    if choices is not None:
        return "one of " + ", ".join(map(str, choices))
    if pattern is not None:
        return f"matches {pattern}"
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"at least {low:g}"
    return f"at most {high:g}" if high is not None else ""


def _type_text(kind: Any) -> str:
    inner = _optional_of(kind)
    if inner is not None:
        return f"{_type_text(inner)} or none"
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return f"list of {_type_text(arguments[0])}"
    if typing.get_origin(kind) is dict:
        return "table" if arguments[1] is Any else f"table of {_type_text(arguments[1])}"
    return {"Path": "path"}.get(kind.__name__, str(kind.__name__))
