"""A wall clock that steps: a preloaded shim moves CLOCK_REALTIME of chosen processes; monotonic clocks stay true."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

OFFSET_FILE = "ROVERLOOP_TEST_CLOCK"
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_ns;
static int (*real_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("ROVERLOOP_TEST_CLOCK");
    real_clock = dlsym(RTLD_NEXT, "clock_gettime");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *page = mmap(0, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED) offset_ns = page;
}

int clock_gettime(clockid_t id, struct timespec *out) {
    if (!real_clock) real_clock = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real_clock(id, out);
    if (status == 0 && offset_ns && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        int64_t now = (int64_t)out->tv_sec * 1000000000 + out->tv_nsec + *offset_ns;
        if (now < 0) now = 0;
        out->tv_sec = now / 1000000000;
        out->tv_nsec = now % 1000000000;
    }
    return status;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int status = clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return status;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """The wall clock of the processes that are started with ``env``; ``set`` steps it while they run."""

    def __init__(self, folder: Path) -> None:
        """Build the shim in the folder; raises OSError where it cannot be built."""
        self._file = folder / "clock"
        self._shim = _build(folder)
        self.set(0.0)

    @property
    def env(self) -> dict[str, str]:
        preload = f"{self._shim}:{os.environ.get('LD_PRELOAD', '')}".rstrip(":")
        return {OFFSET_FILE: str(self._file), "LD_PRELOAD": preload}

    def set(self, offset_s: float) -> None:
        """Let the wall clock be this much ahead of the true one; in place, for it is mapped into the processes."""
        content = struct.pack("=q", int(offset_s * 1e9))
        if self._file.exists():
            with self._file.open("r+b") as file:
                file.write(content)
        else:
            self._file.write_bytes(content)


def _build(folder: Path) -> Path:
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(SOURCE)
    words = ["cc", "-O1", "-fPIC", "-shared", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise OSError(done.returncode, done.stderr.strip())
    return library


@cache
def why_not() -> str:
    """Return why no clock can be stepped here; empty where one can."""
    if not sys.platform.startswith("linux") or shutil.which("cc") is None:
        return "a clock step needs Linux and a C compiler (cc) for its shim"
    folder = Path(tempfile.mkdtemp(prefix="roverloop-clock-"))
    try:
        clock = Clock(folder)
        clock.set(-4e9)
        words = [sys.executable, "-S", "-c", "import time; print(time.time())"]
        env = {**os.environ, **clock.env}
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=env)
        with contextlib.suppress(ValueError):
            if float(done.stdout) == 0.0:
                return ""
    except OSError as error:
        return f"the shim for clock steps cannot be built: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "this Python's clock cannot be moved by a preloaded shim"
