"""Drive with the keys of a terminal: commands 20 times a second, and what the robot says of itself.

The keys are read unbuffered and unechoed; the terminal is as it was when this ends, whatever ends it (SIGKILL apart).
A terminal that is closed, stopped or hangs sends nothing, and so the robot stands.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import secrets
import select
import signal
import sys
import termios
import time
import tty
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TextIO

from protocol.node.socket import ControlClient, ControlError
from roverd.keyboard import Keyboard, split

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

COMMAND_S = 0.05
SHOW_S = 0.1
PATIENCE_S = 1.0
"""How long one command may take: the robot has long stopped by then."""
GIVE_UP_S = 10.0
STOP, E_STOP, RELEASE, QUIT = " ", "e", "r", "q"
COLLECT = {"\r": "next", "\n": "next", "1": "success", "2": "failure", "3": "discard"}
NOTE_S = 3.0
BAR = 20


class ClosedError(Exception):
    """The terminal was closed, or somebody asked this process to end."""


def drive_in_terminal(client: ControlClient, *, hold_first_ms: float, by_force: bool) -> dict[str, Any]:
    """Take the wheel and drive until the person quits; return how that ended. Raises ControlError where refused."""
    quick = ControlClient(client.path, timeout_s=PATIENCE_S)
    owner = f"{os.environ.get('USER', 'terminal')[:20]} {os.ttyname(sys.stdin.fileno())} {secrets.token_hex(2)}"
    owner = "".join(
        each for each in owner.replace("/dev/", "") if each.isascii() and (each.isalnum() or each in " .-_")
    )
    taken = client.post("/wheel/take", {"owner": owner, "force": by_force})
    wheel = client.get("/wheel")["view"]["wheel"]
    pairs = [tuple(axis["keys"]) for axis in taken["axes"]]
    keyboard = Keyboard(pairs, hold_s=wheel["dead_man_ms"] * 1e-3, hold_first_s=hold_first_ms * 1e-3)
    session = Session(quick, owner, taken["axes"], keyboard)
    with raw_terminal(sys.stdin), contextlib.suppress(KeyboardInterrupt, ClosedError):
        session.run(sys.stdin, sys.stdout)
    if session.is_released:
        return {"owner": owner, "released": True}
    hint = "the robot stands and the policy waits; roverctl wheel release --force lets it drive on"
    return {"owner": owner, "released": False, "hint": hint}


@contextlib.contextmanager
def raw_terminal(stream: TextIO) -> Iterator[None]:
    """Read single keys without echo for a while; Ctrl-C stays what it is."""
    descriptor = stream.fileno()
    before = termios.tcgetattr(descriptor)

    def end(_number: int, _frame: FrameType | None) -> None:
        raise ClosedError

    def pause(_number: int, _frame: FrameType | None) -> None:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)

    def go_on(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTSTP, pause)
        tty.setcbreak(descriptor, termios.TCSANOW)

    handlers = {signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGTSTP: pause, signal.SIGCONT: go_on}
    replaced = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        with contextlib.suppress(termios.error):  # it hung up
            termios.tcsetattr(descriptor, termios.TCSANOW, before)


class Session:
    """One person at one terminal."""

    def __init__(self, client: ControlClient, owner: str, axes: list[dict[str, Any]], keyboard: Keyboard) -> None:
        """Take the wheel's owner, who has it, and his keys."""
        self._client, self._owner, self._axes, self._keyboard = client, owner, axes, keyboard
        self._view: dict[str, Any] = {}
        self._note = ""
        self._note_until_s = 0.0
        self._failed_s: float | None = None
        self._lines = 0
        self._rest = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("ignore").decode
        self.is_released = False

    def run(self, keys: TextIO, screen: TextIO) -> None:
        """Read keys, command, and show, until the person quits; raises ClosedError where the terminal is gone."""
        command_s = show_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            ready, _, _ = select.select([keys], [], [], max(0.0, min(command_s, show_s) - now_s))
            now_s = time.monotonic()
            if ready and not self._read(keys.fileno(), now_s):
                return
            if now_s >= command_s:
                self._command(now_s)
                command_s = max(command_s + COMMAND_S, time.monotonic())
            if now_s >= show_s:
                show_s = now_s + SHOW_S
                self._show(screen)

    def _read(self, descriptor: int, now_s: float) -> bool:
        try:
            content = os.read(descriptor, 1024)
        except OSError as error:  # it hung up
            raise ClosedError from error
        if not content:
            raise ClosedError
        keys, self._rest = split(self._rest + self._decode(content))
        goes_on = True
        for key in keys:
            goes_on &= self._press(key, now_s)
        return goes_on

    def _press(self, key: str, now_s: float) -> bool:
        """Do what a key is for; False where the person quits."""
        if key == E_STOP:  # before anything else
            self._keyboard.let_go()
            self._ask("/e_stop", {"reason": self._owner}, "emergency stop; roverctl clear lets the robot drive again")
        elif key == STOP:
            self._keyboard.let_go()
        elif key in COLLECT:
            verb = COLLECT[key]
            path, body = ("/collect/next", {}) if verb == "next" else ("/collect/judge", {"verdict": verb})
            self._ask(path, body, f"episode: {verb}")
        elif key in {RELEASE, QUIT}:
            return self._toggle() if key == RELEASE else self._quit()
        else:
            self._keyboard.press(key, now_s)
        return True

    def _toggle(self) -> bool:
        """Let go of the wheel, or take it again."""
        self._keyboard.let_go()
        path = "/wheel/take" if self.is_released else "/wheel/release"
        if self._ask(path, {"owner": self._owner}, "yours" if self.is_released else "released; r takes it again"):
            self.is_released = not self.is_released
        return True

    def _quit(self) -> bool:
        self.is_released = self.is_released or self._ask("/wheel/release", {"owner": self._owner}, "")
        return False

    def _ask(self, path: str, body: dict[str, Any], note: str) -> bool:
        try:
            self._client.post(path, body)
        except ControlError as error:
            self._say(str(error))
            return False
        self._say(note)
        return True

    def _say(self, note: str, seconds: float = NOTE_S) -> None:
        self._note, self._note_until_s = note, time.monotonic() + seconds

    def _command(self, now_s: float) -> None:
        body = {"owner": self._owner, "axes": self._keyboard.pushes(now_s), "sent_ns": time.monotonic_ns()}
        try:
            if self.is_released:
                self._view = self._client.get("/wheel")["view"]
            else:
                self._view = self._client.post("/wheel/drive", body)["view"]
            self._failed_s = None
        except ControlError as error:
            self._say(str(error))
            self.is_released = self.is_released or error.status == HTTPStatus.CONFLICT  # somebody else took it
            if self._failed_s is None:
                self._failed_s = now_s
            if error.status is None and now_s - self._failed_s > GIVE_UP_S:
                raise

    # -- the screen -------------------------------------------------------------------------------------------------

    def _show(self, screen: TextIO) -> None:
        now_s = time.monotonic()
        note = self._note if now_s < self._note_until_s else ""
        lines = [*render(self._view, self._axes, self._keyboard.pushes(now_s)), note]
        width = os.get_terminal_size(screen.fileno()).columns or 80
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self._lines = len(lines)
        screen.write(up + "".join(f"\r{line[: width - 1]}\x1b[K\n" for line in lines))
        screen.flush()


def render(view: dict[str, Any], axes: list[dict[str, Any]], pushes: list[float]) -> list[str]:
    """Return the lines of the screen for what the robot last said and how far the keys push."""
    if not view:
        return ["waiting for roverd"]
    wheel, link = view["wheel"], view["link"]
    trip = "" if link["round_trip_ms"] is None else f" {link['round_trip_ms']:.0f} ms"
    clearance = "-" if view["clearance_m"] is None else f"{view['clearance_m']:.2f} m"
    owner = wheel["owner"] or "nobody"
    owner += "" if wheel["is_obeyed"] else ", not obeyed now"
    lines = [
        f"wheel {wheel['state']} ({owner})   mode {view['mode']}   link {link['state']}{trip}",
        f"drives {view['source'] or '-':<9} clearance {clearance:<8} {' '.join(view['flags'])}",
    ]
    if view["e_stop"]:  # in place of what drives: nothing does
        lines[1] = f"EMERGENCY STOP, roverctl clear on the robot lets it drive again: {view['e_stop']}"
    for axis, push in zip(axes, pushes, strict=True):
        more, less = axis["keys"]
        applied = view["action"].get(axis["name"])
        number = "-" if applied is None else f"{applied:+.3f}"
        lines.append(f"  {more or ' '}/{less or ' '}  {axis['name']:<14} {bar(push)} {number} {axis['unit']}")
    measured = "  ".join(f"{name} {value}" for name, value in view["state"].items())
    lines.append(f"  {measured}")
    if facts := view["collection"]:
        hint = "  Enter: next episode" if facts["is_waiting"] else ""
        lines.append(
            f"collection {facts['name']} {facts['state']}: {facts['kept']} of {facts['target']}, "
            f"{facts['discarded']} discarded{hint}   1 success  2 failure  3 discard"
        )
    return [*lines, "space: stop   e: emergency stop   r: release or take   q: release and quit   Ctrl-C: quit, locked"]


def bar(push: float) -> str:
    """Draw how far an axis is pushed."""
    half = BAR // 2
    marks = round(abs(push) * half)
    left = ("#" * marks if push < 0 else "").rjust(half)
    right = ("#" * marks if push > 0 else "").ljust(half)
    return f"[{left}|{right}]"
