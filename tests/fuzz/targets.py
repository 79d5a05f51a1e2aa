"""Every fuzz target by name, with the inputs to begin from and the largest input that makes sense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz import files, page, services, wire


@dataclass(frozen=True)
class Target:
    """``run`` returns, or raises on a finding."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    max_bytes: int


TARGETS = {
    "header": Target(wire.header, wire.header_seeds, 1 << 16),
    "record": Target(wire.record, wire.record_seeds, 1 << 14),
    "jpeg": Target(wire.jpeg, wire.jpeg_seeds, 1 << 13),
    "depth": Target(wire.depth, wire.depth_seeds, 1 << 12),
    "bundle": Target(wire.bundle, wire.bundle_seeds, 1 << 14),
    "legacy": Target(wire.legacy, wire.legacy_seeds, 1 << 15),
    "control": Target(services.control, services.control_seeds, 1 << 14),
    "pairing": Target(services.pairing, services.pairing_seeds, 1 << 12),
    "page": Target(page.message, page.message_seeds, 1 << 12),
    "host": Target(page.host, page.host_seeds, 1 << 10),
    "spool": Target(files.spool, files.spool_seeds, 1 << 14),
    "chunk": Target(files.chunk, files.chunk_seeds, 1 << 13),
    "episode": Target(files.episode, files.episode_seeds, 1 << 15),
}
