"""A person at a terminal: a command in a pseudo-terminal of its own, keys that are pressed, a screen that is read."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

OWN_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""Makes stdin the controlling terminal, so that Ctrl-C and hanging up reach the command; tests in the background of a
shell, which ignore Ctrl-C, must not hand that down."""
SHELL = (
    "import fcntl, os, signal, subprocess, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGTTOU, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "front = lambda: (os.setpgrp(), os.tcsetpgrp(0, os.getpgrp())); "
    "sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], preexec_fn=front).returncode)"
)
"""Runs the command in front of something like a shell, without which Ctrl-Z does nothing."""
REPEAT_S = 0.03


class Typist:
    """Run ``python`` with words; a context manager that ends it."""

    def __init__(
        self, *words: str, cwd: Any = None, env: Mapping[str, str] | None = None, has_shell: bool = False
    ) -> None:
        self._master, self.terminal = pty.openpty()
        self.modes_before = termios.tcgetattr(self.terminal)
        self._shown = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHELL if has_shell else OWN_TERMINAL, *words],
            stdin=self.terminal,
            stdout=self.terminal,
            stderr=self.terminal,
            start_new_session=True,
            cwd=cwd,
            env=env,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()
        os.close(self.terminal)

    def hang_up(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    @property
    def job(self) -> int:
        """The process that the shell started."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def hold(self, key: str, seconds: float, *, delay_s: float = 0.0) -> None:
        """Press a key as a keyboard does: once, again after a delay, and then many times a second."""
        end = time.monotonic() + seconds
        self.press(key)
        time.sleep(delay_s)
        while time.monotonic() < end:
            self.press(key)
            time.sleep(REPEAT_S)
            self.read()

    def read(self, wait_s: float = 0.0) -> str:
        """Return all that was shown so far, and in the next ``wait_s``."""
        end = time.monotonic() + wait_s
        while self._master >= 0 and select.select([self._master], [], [], max(0.0, end - time.monotonic()))[0]:
            try:
                self._shown += os.read(self._master, 65536)
            except OSError:  # nobody writes any more
                break
        return self._shown.decode(errors="replace")

    def wait_for(self, text: str, deadline_s: float = 15.0) -> None:
        """Wait until a text is shown that was not there before."""
        before = len(self.read())
        end = time.monotonic() + deadline_s
        while text not in self.read(0.02)[before:]:
            assert time.monotonic() < end, f"{text!r} was not shown within {deadline_s} s: {self.read()[-1500:]}"
            assert self.process.poll() is None or text in self.read(0.1)[before:], self.read()[-1500:]

    def end(self, deadline_s: float = 15.0) -> int:
        """Wait until the command ended by itself, and return its status."""
        end = time.monotonic() + deadline_s
        while self.process.poll() is None:
            self.read(0.02)
            assert time.monotonic() < end, f"it still runs after {deadline_s} s: {self.read()[-1500:]}"
        return self.process.wait()

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.terminal)
