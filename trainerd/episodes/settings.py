"""The options of the episode store."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.node.config import option


@dataclass(frozen=True)
class StoreSettings:
    """How episodes are kept on disk."""

    sync_interval_ms: int = option(
        100, help="time after which received records are synced to disk at the latest", low=1, high=1000
    )
    min_free_mb: int = option(
        512, help="free space on the disk below which nothing more is stored or acknowledged", low=0
    )
    quota_gb: float = option(
        0.0,
        help="space for episodes; beyond it the oldest training episodes that were used are deleted; 0: no limit",
        low=0.0,
    )
    queue_mb: int = option(256, help="records that may wait in memory for the disk", low=1, high=65536)
