"""What a firewall of this machine lets in, as far as it can be read."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from protocol.node.checkup.check import Check, judge, note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

COMMAND_S = 2.0


class Firewall(NamedTuple):
    """What could be read of the rules of this machine."""

    reader: str
    rules: str
    problem: str = ""


COMMANDS = (
    ("nft", ("nft", "list", "ruleset")),
    ("ufw", ("ufw", "status", "verbose")),
    ("iptables", ("iptables", "-S")),
)


def read_firewall() -> Firewall:
    """Read the rules with the first tool that is there and may; root may, others mostly not."""
    problem = ""
    for name, command in COMMANDS:
        path = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/sbin")
        if path is None:
            continue
        try:
            done = subprocess.run(
                [path, *command[1:]], capture_output=True, text=True, timeout=COMMAND_S, check=False, errors="replace"
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = problem or f"{name}: {error}"
            continue
        if done.returncode == 0:
            return Firewall(name, done.stdout)
        problem = problem or f"{name}: {(done.stderr or done.stdout).strip()[:80]}"
    return Firewall("", "", problem)


def is_dropping(firewall: Firewall) -> bool:
    """Say whether what nobody allows is dropped on its way in."""
    text = firewall.rules
    if firewall.reader == "ufw":
        return "Status: active" in text and bool(re.search(r"Default: (deny|reject) \(incoming\)", text))
    if firewall.reader == "iptables":
        return bool(re.search(r"^-P INPUT (DROP|REJECT)", text, re.MULTILINE)) or bool(
            re.search(r"^-A INPUT (-j|--jump) (DROP|REJECT)", text, re.MULTILINE)
        )
    return any(_drops(body) for body in re.findall(r"hook input (.*?)^\s*\}\s*$", text, re.MULTILINE | re.DOTALL))


def _drops(chain: str) -> bool:
    """Judge a chain of nftables by its policy and its last rule."""
    lines = [line.strip() for line in chain.strip().splitlines()]
    return "policy drop" in lines[0] or bool(re.match(r"(counter .*)?(drop|reject)\b", lines[-1]))


def mentions(firewall: Firewall, port: int) -> bool:
    """Say whether some rule speaks of a port, be it in a list or a range."""
    for first, last in re.findall(r"\b(\d{1,5})(?:\s*[-:]\s*(\d{1,5}))?", _rules_with_ports(firewall)):
        if int(first) <= port <= int(last or first):
            return True
    return False


def _rules_with_ports(firewall: Firewall) -> str:
    lines = firewall.rules.splitlines()
    if firewall.reader == "ufw":
        return "\n".join(line for line in lines if "ALLOW" in line)
    accepting = (line for line in lines if "dport" in line and "accept" in line.lower())
    return "\n".join(line.partition("dport")[2] for line in accepting)


def judge_firewall(firewall: Firewall, ports: Iterable[int], *, is_needed: bool) -> Iterator[Check]:
    """Judge whether rovers get through to these ports; a guess from the rules' text, so it may only hint."""
    wanted = sorted(set(ports))
    allow = " and ".join(f"sudo ufw allow {port}/tcp" for port in wanted)
    expected = f"lets {', '.join(map(str, wanted))} in"
    if not firewall.reader:
        problem = firewall.problem or "no tool to read it (nft, iptables, ufw)"
        yield note("firewall", f"not read: {problem}", expected, f"as root: nft list ruleset; to open it: {allow}")
        return
    closed = [port for port in wanted if not mentions(firewall, port)] if is_dropping(firewall) else []
    fault = f"drops what no rule allows, and none names {', '.join(map(str, closed))}"
    measured = f"{firewall.reader}: {fault if closed else 'lets them in'}"
    yield judge("firewall", measured, expected, allow, ok=not closed, is_needed=is_needed)
