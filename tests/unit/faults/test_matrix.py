"""The fault matrix of the documents names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "reliability.md").read_text()


def test_every_row_of_the_matrix_is_there_once_and_says_how_it_is_tested_or_why_not():
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|([^|]*)\| ([^|]+) \|$", TEXT, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(1, 35))
    for number, fault, happens, test in rows:
        assert fault, number
        assert test, number
        assert happens.strip() or "not tested" in test or "cannot be tested" in test, number


def test_every_test_that_it_names_exists():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 25
    assert sorted(name for name in named if f"def {name}(" not in sources) == []


def test_every_file_that_it_names_exists():
    for name in re.findall(r"tests/[\w/]+\.py", TEXT):
        assert (ROOT / name).is_file(), name
