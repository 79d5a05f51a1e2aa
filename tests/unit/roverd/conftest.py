"""Fixtures of the tests of the robot's parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def logs() -> Iterator[list]:
    """Return what was logged in a test so far."""
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def soon(monkeypatch) -> None:
    """Start dead policy processes again without the pause that real ones need."""
    monkeypatch.setattr("roverd.policies.slots.REVIVE_DELAY_S", 0.01)
