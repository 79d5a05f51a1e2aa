"""What a peer receives into, and what makes it durable."""

import os
import time
from pathlib import Path

import numpy as np

SLOTS = 8
"""As many as trainerd's image ring has for a robot that decides each tick."""


class Ring:
    """Arrays that were allocated and touched before anything is measured."""

    def __init__(self, shape):
        rows, columns = shape
        self.rgb = np.full((SLOTS, rows, columns, 3), 1, np.uint8)
        self.depth = np.full((SLOTS, rows, columns), 1, np.uint16)
        self.state = np.full((SLOTS, 10), 1, np.float32)
        self.action = np.full((SLOTS, 2), 1, np.float32)
        self.reward = np.full(SLOTS, 1, np.float32)
        self.count = 0

    def put(self, rgb, depth, state, action, reward):
        at = self.count % SLOTS
        self.rgb[at] = rgb
        self.depth[at] = depth
        self.state[at] = state
        self.action[at] = action
        self.reward[at] = reward
        self.count += 1


class Journal:
    """A file that what came is appended to, synced for many steps at once."""

    def __init__(self, folder):
        self._file = os.open(Path(folder) / "journal.bin", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self.synced_s = time.monotonic()
        self.pending = 0

    def append(self, content):
        os.write(self._file, content)
        self.pending += 1

    def sync(self):
        os.fdatasync(self._file)
        self.pending = 0
        self.synced_s = time.monotonic()

    def is_due(self, interval_s):
        return bool(self.pending) and time.monotonic() - self.synced_s >= interval_s
