"""Daemons for the browser's tests, as for the others."""

from __future__ import annotations

from tests.daemon.conftest import pytest_runtest_makereport, site

__all__ = ["pytest_runtest_makereport", "site"]
