"""Logs: a coloured console on a terminal, fields in the journal under systemd, JSON lines on stdout elsewhere."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import structlog

from protocol.node import journal

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from structlog.typing import FilteringBoundLogger, Processor

LEVELS = ("debug", "info", "warning", "error")
FIELD_LIMIT = 2048
FLOOD_BURST = 200
FLOOD_PER_S = 20.0
"""So many lines of one event pass at once, and so many a second then; journald takes 333 a second from a unit."""
_TRACEBACK_LIMIT = 16384
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_BUT_NEWLINE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def configure(daemon: str, *, level: str = "info") -> None:
    """Set up the logs of this process; every line carries ``daemon``.

    Args:
        daemon: ``roverd``, ``trainerd`` or one of their processes.
        level: one of ``LEVELS``; what libraries log through ``logging`` passes from warning on.

    """
    is_terminal = sys.stderr.isatty()
    is_journal = not is_terminal and (journal.is_journal(sys.stdout) or journal.is_journal(sys.stderr))
    structlog.configure(
        processors=[
            FloodLimiter(),
            partial(_name_daemon, daemon),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso", utc=not is_terminal),
            structlog.processors.format_exc_info,
            _tame_fields,
            journal.render if is_journal else _renderer(is_terminal=is_terminal),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=_factory(is_terminal=is_terminal, is_journal=is_journal),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def get_logger(**facts: Any) -> FilteringBoundLogger:
    """Give a logger that adds ``facts`` to each of its lines; it may be made before ``configure`` was called."""
    return cast("FilteringBoundLogger", structlog.get_logger(**facts))


class RepeatLimiter:
    """Decide which repeats of a message are worth a line: the 1st, 10th, 100th and so on of each key.

    ::

        if count := self._repeats.count(camera):
            log.warning("frame.dropped", camera=camera, count=count, hint="...")
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._counts: Counter[str] = Counter()

    def count(self, key: str) -> int:
        """Count one occurrence; give the count where it is to be logged, else 0."""
        self._counts[key] += 1
        count = self._counts[key]
        return count if re.fullmatch("10*", str(count)) else 0

    def reset(self, key: str) -> int:
        """Forget a key, because what was wrong is right again; give how often it had happened."""
        return self._counts.pop(key, 0)


class FloodLimiter:
    """Processor: let so many lines of an event pass, count the others, and tell the counts with the next that passes.

    ``suppressed`` is that next line's key: a map from event to count. Any thread may log.
    """

    def __init__(
        self, burst: int = FLOOD_BURST, per_s: float = FLOOD_PER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with a full allowance for every event."""
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._allowances: dict[str, tuple[float, float]] = {}
        self._suppressed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, _logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Pass the line on, or raise DropEvent."""
        event, now = str(fields.get("event", "")), self._clock()
        with self._lock:
            left, then = self._allowances.get(event, (float(self._burst), now))
            left = min(float(self._burst), left + (now - then) * self._per_s)
            if left < 1:
                self._allowances[event] = (left, now)
                self._suppressed[event] += 1
                raise structlog.DropEvent
            self._allowances[event] = (left - 1, now)
            if self._suppressed:
                fields["suppressed"] = dict(self._suppressed)
                self._suppressed.clear()
        return fields


class _Forward(logging.Handler):
    """Bring what libraries log through ``logging`` into the same stream."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as an event."""
        log = get_logger()
        facts = {"logger": record.name, "text": record.getMessage(), "exc_info": record.exc_info}
        if record.levelno >= logging.ERROR:
            log.error("library.failed", **facts, hint="an error inside a library; see its documentation")
        else:
            log.warning("library.warned", **facts, hint="a warning from a library; see its documentation")


def _renderer(*, is_terminal: bool) -> Processor:
    if is_terminal:
        return structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)
    return structlog.processors.JSONRenderer(default=repr)


def _factory(*, is_terminal: bool, is_journal: bool) -> Callable[..., Any]:
    if is_journal:
        logger = journal.JournalLogger()
        return lambda *_: logger
    return structlog.PrintLoggerFactory(sys.stderr if is_terminal else sys.stdout)


def _name_daemon(daemon: str, _logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the daemon on the lines of every thread; context variables reach only those that inherit them."""
    fields.setdefault("daemon", daemon)
    return fields


def _tame_fields(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters and cut long fields: what a robot or a file name says must not forge lines."""
    for key, value in fields.items():
        if key == "exception":
            fields[key] = _tame_text(str(value)[-_TRACEBACK_LIMIT:], _CONTROL_BUT_NEWLINE, _TRACEBACK_LIMIT)
        else:
            fields[key] = _tame(value)
    return fields


def _tame(value: Any) -> Any:
    if isinstance(value, str):
        return _tame_text(value, _CONTROL, FIELD_LIMIT)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = repr(value)
    if len(text) > FIELD_LIMIT or not isinstance(value, (dict, list, tuple)):
        return _tame_text(text if isinstance(value, (dict, list, tuple, bytes)) else str(value), _CONTROL, FIELD_LIMIT)
    if isinstance(value, dict):
        return {str(key): _tame(each) for key, each in value.items()}
    return [_tame(each) for each in value]


def _tame_text(text: str, unwanted: re.Pattern[str], limit: int) -> str:
    cut = text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
    return unwanted.sub(lambda match: match[0].encode("unicode_escape").decode(), cut)
