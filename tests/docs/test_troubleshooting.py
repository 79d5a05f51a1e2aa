"""Every check that the troubleshooting page names exists in one of the doctors, by that name."""

from __future__ import annotations

import ast
import re

from tests.docs.reference import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = ("protocol/node/checkup", "roverd/doctor", "trainerd/doctor")
TOOLS = ("roverctl", "trainerctl")


def names_in_code() -> set[str]:
    """Return every text of the doctors, with NAME for what is filled in."""
    found = set()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.add("".join(str(p.value) if isinstance(p, ast.Constant) else "NAME" for p in node.values))
    return found


def names_in_page() -> set[str]:
    """Return what stands behind ``... doctor`: `` in the column of checks."""
    named = set()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = line.split("|")
        if len(cells) < 5 or "doctor`" not in cells[2]:
            continue
        for part in re.split(r"`(?:roverctl|trainerctl) doctor`", cells[2])[1:]:
            ticked = re.findall(r"`([^`]+)`", re.sub(r"\([^)]*\)", "", part))
            named |= {each for each in ticked if not each.startswith(TOOLS) and "." not in each.replace("...", "")}
    return named


def test_every_check_that_is_named_exists() -> None:
    patterns = [re.escape(name).replace("NAME", ".+") for name in names_in_code() if not name.startswith("NAME")]
    named = names_in_page()
    assert len(named) > 40
    assert [each for each in sorted(named) if not any(re.fullmatch(pattern, each) for pattern in patterns)] == []
