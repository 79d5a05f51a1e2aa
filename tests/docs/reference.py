"""Make the pages of docs/reference from the code: settings, hooks, commands, events."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from pathlib import Path
from typing import Any

from protocol.node.options import describe

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"
DAEMONS = {"roverd": "roverctl", "trainerd": "trainerctl"}
PACKAGES = ("protocol", "plugins", "roverd", "trainerd")

_EVENT_CALL = re.compile(r'\blog\.(debug|info|warning|error|exception|critical)\(\s*f?"([^"]*)"')
_EVENT_LINE = re.compile(r"^\| `([^`]+)` \| ([a-z, ]*) \| (.*) \|$", re.MULTILINE)
_NOTE = "<!-- made from the code by ./dev docs -->"


def settings_page() -> str:
    """Write every option of both daemons."""
    lines = ["# Settings", _NOTE, ""]
    lines += ["Defaults < profile < TOML file < environment (`ROVERD_PPO__GAMMA`) < `--set ppo.gamma=0.99`.", ""]
    for daemon in DAEMONS:
        if not (ROOT / daemon / "settings.py").is_file():
            continue
        lines += [f"## {daemon}", "", "| option | type | default | limits | what it does |", "|---|---|---|---|---|"]
        for each in describe(importlib.import_module(f"{daemon}.settings").Settings):
            cells = (f"`{each.name}`", each.type, f"`{each.default}`", each.limits, each.help)
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
    return _page(lines)


def hooks_page() -> str:
    """Write every hook with its arguments and docstring."""
    lines = ["# Hooks", _NOTE, ""]
    for name, arguments, text in hooks():
        lines += [f"## {name}({', '.join(arguments)})", "", text, ""]
    return _page(lines)


def hooks() -> list[tuple[str, list[str], str]]:
    """List the hooks of plugins/hookspecs.py as (name, argument names, docstring)."""
    path = ROOT / "plugins" / "hookspecs.py"
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module(body=[], type_ignores=[])
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(_is_hookspec(each) for each in node.decorator_list):
            arguments = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            found.append((node.name, [each for each in arguments if each != "self"], ast.get_docstring(node) or ""))
    return found


def commands_page() -> str:
    """Write every command of both control tools."""
    lines = ["# Commands", _NOTE, ""]
    lines += ["Every command takes `--json` and `--control-socket PATH`; it ends with 0 when done, 1 when refused,"]
    lines += ["2 when used wrongly.", ""]
    for daemon, tool in DAEMONS.items():
        if not (ROOT / daemon / "ctl.py").is_file():
            continue
        for command in importlib.import_module(f"{daemon}.ctl").COMMANDS:
            lines += [f"## {tool} {' '.join(command.words)}", "", command.help, ""]
            arguments = list(_arguments(command))
            lines += [*arguments, ""] if arguments else []
    return _page(lines)


def events_page() -> str:
    """Write every event: known descriptions stay, a new event gets an empty one, a gone one goes."""
    path = FOLDER / "events.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    described = {name: description for name, _, description in _EVENT_LINE.findall(text)}
    lines = ["# Events", _NOTE, ""]
    lines += ["What the logs say, by name. Levels and names come from the code; the descriptions are written here.", ""]
    lines += ["| event | level | what happened, what to do |", "|---|---|---|"]
    found = events()
    lines += [f"| `{name}` | {', '.join(sorted(found[name]))} | {described.get(name, '')} |" for name in sorted(found)]
    return _page(lines)


def events() -> dict[str, set[str]]:
    """Find every event that the code logs, with its levels."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for level, name in _EVENT_CALL.findall(_code(path)):
                found.setdefault(name, set()).add("error" if level == "exception" else level)
    return found


PAGES = {
    "settings.md": settings_page,
    "hooks.md": hooks_page,
    "commands.md": commands_page,
    "events.md": events_page,
}


def _code(path: Path) -> str:
    """Read a module without its docstrings, whose examples are no events of ours."""
    text = original = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(original)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and ast.get_docstring(node) is not None:
                text = text.replace(ast.get_source_segment(original, first) or "\0", "")
    return text


def _is_hookspec(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Name) and called.id == "hookspec"


def _arguments(command: Any) -> Any:
    parser = argparse.ArgumentParser(add_help=False)
    command.arguments(parser)
    for action in parser._actions:  # argparse has no public list
        name = action.option_strings[-1] if action.option_strings else action.metavar or action.dest
        yield f"- `{name}`: {action.help or ''}".rstrip(": ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _page(lines: list[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"
