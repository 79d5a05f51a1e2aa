"""The documents agree with the code; `./dev docs` repairs what can be repaired."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.reference import FOLDER, PAGES, ROOT, events, hooks

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if path.is_file())
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
_PLACEHOLDER = re.compile(
    r"\{\{.*?\}\}|\bT(BD|ODO)\b|\bXXX+\b|\bFIXME\b|\?\?\?|<(number|figure|value|link)>", re.IGNORECASE
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_the_reference_is_what_the_code_says(page: str) -> None:
    path = FOLDER / page
    assert path.is_file(), f"docs/reference/{page} is missing: run ./dev docs"
    assert path.read_text(encoding="utf-8") == PAGES[page](), f"docs/reference/{page} is out of date: run ./dev docs"


def test_the_name_of_an_event_is_a_noun_and_a_verb() -> None:
    assert [name for name in events() if not re.fullmatch(r"[a-z_]+\.[a-z_]+", name)] == []


def test_every_event_is_described() -> None:
    page = FOLDER / "events.md"
    empty = re.findall(r"^\| `([^`]+)` \| [a-z, ]* \|\s*\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert empty == [], "write what happened and what to do in docs/reference/events.md"


def test_every_hook_has_a_docstring() -> None:
    assert [name for name, _, text in hooks() if not text] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in _LINK.findall(text):
        path, _, _anchor = target.partition("#")
        if path and not re.match(r"[a-z]+:", path) and not (document.parent / path).exists():
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_figure_is_left_to_be_filled_in(document: Path) -> None:
    found = [match[0] for match in _PLACEHOLDER.finditer(document.read_text(encoding="utf-8"))]
    assert found == []
