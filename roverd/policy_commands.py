"""The commands of roverctl that are about policies."""

from __future__ import annotations

import base64
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.node.ctl import Command, render_facts, render_table

if TYPE_CHECKING:
    import argparse

    from protocol.node.ctl import Outcome
    from protocol.node.socket import ControlClient

PIECE_BYTES = 512 << 10
"""In base64 it still fits into the request of 1 MiB that the control socket takes."""
FOLLOW_S = 30.0
POLL_S = 0.1
UNDER_WAY = {"pulling", "verifying", "loading", "shadowing"}
FAILED = {"refused", "rolled_back"}


class InstallError(RoverError):
    """The file cannot be read, or its policy may not drive."""


def _listing(client: ControlClient, _: argparse.Namespace) -> Outcome:
    return client.get("/policies"), 0


def _show(client: ControlClient, _: argparse.Namespace) -> Outcome:
    return client.get("/policies/transaction"), 0


def _post(path: str) -> Any:
    def run(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
        return client.post(path, {"now": arguments.now}), 0

    return run


def _install(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    answer = send_file(client, arguments.file, now=arguments.now)
    return _follow(client, answer), 0


def send_file(client: ControlClient, path: Path, *, now: bool) -> dict[str, Any]:
    """Send a bundle piece by piece and let it be installed; return the answer, from before it is loaded.

    Raises:
        InstallError: the file cannot be read.
        ControlError: roverd refuses it, or does not answer.

    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InstallError(f"policy install {path}: {error.strerror}; give a policy bundle") from error
    for offset in range(0, len(content), PIECE_BYTES):
        piece = base64.b64encode(content[offset : offset + PIECE_BYTES]).decode()
        client.post("/policies/upload", {"offset": offset, "content": piece})
    facts = {"name": str(path.absolute()), "sha256": hashlib.sha256(content).hexdigest(), "now": now}
    return {**client.post("/policies/install", facts), "file": str(path)}


def _follow(client: ControlClient, answer: dict[str, Any]) -> dict[str, Any]:
    """Wait until the policy may drive; return the answer with its stage; raises InstallError where it was refused."""
    deadline_s = time.monotonic() + FOLLOW_S
    while True:
        shown = client.get("/policies/transaction")
        transaction = shown["transaction"]
        is_its_own = transaction.get("name") == answer["policy_id"]
        if shown["driving"] == answer["policy_id"] and not (is_its_own and transaction["stage"] in UNDER_WAY):
            return {**answer, "stage": "driving"}
        refusal = shown["last_refusal"]
        if refusal["name"] == answer["policy_id"]:
            raise InstallError(f"policy install {answer['file']}: {refusal['reason']}; the policy before drives on")
        if is_its_own and transaction["stage"] == "ready" and not transaction["now"]:
            return {**answer, "stage": "ready: it drives from the next episode on"}
        if time.monotonic() > deadline_s:
            return {**answer, "stage": f"{transaction['stage']}: see roverctl policy show"}
        time.sleep(POLL_S)


def _now_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--now", action="store_true", help="swap between two ticks; else the running episode is driven to its end"
    )


def _install_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="policy bundle, as a trainer exports it")
    _now_argument(parser)


def _policies(answer: dict[str, Any]) -> str:
    rows = [
        ("*" if row["driving"] else "", row["policy_id"][:12], row["size_bytes"], row["age_s"])
        for row in answer["policies"]
    ]
    return render_table(rows, ("", "policy", "bytes", "age s"))


def _shown(answer: dict[str, Any]) -> str:
    """Print one line for each thing that there is to say."""
    transaction, standby, watch = answer["transaction"], answer["standby"], answer["watch"]
    measured = {k: v for k, v in transaction.items() if k not in {"stage", "name", "kind", "now", "reason"}}
    words = (transaction["stage"], transaction.get("name", "")[:12], transaction.get("reason", ""))
    lines = {
        "drives": answer["driving"][:12] or "nothing",
        "transaction": " ".join(filter(None, words)),
        **({"measured": ", ".join(f"{key} {value}" for key, value in measured.items())} if measured else {}),
        "stands by": f"{standby['name'][:12] or 'nothing'} {standby['role']}".strip(),
        "watch": ", ".join(f"{key} {value}" for key, value in watch.items()),
        "previous": answer["previous"][:12] or "none",
    }
    if answer["last_refusal"]["name"]:
        lines["refused last"] = f"{answer['last_refusal']['name'][:12]}: {answer['last_refusal']['reason']}"
    lines |= {f"barred {name[:12]}": reason for name, reason in answer["barred"].items()}
    return render_facts(lines)


POLICY_COMMANDS = (
    Command(("policy", "list"), "policies stored on this robot", _listing, render=_policies),
    Command(("policy", "show"), "what drives, what is on its way, and why one was refused", _show, render=_shown),
    Command(("policy", "install"), "let the policy in a file drive", _install, arguments=_install_arguments),
    Command(
        ("policy", "reload"),
        "load the wanted policy again; one that was refused gets another chance",
        _post("/policies/reload"),
        arguments=_now_argument,
    ),
    Command(
        ("policy", "rollback"),
        "let the policy before this one drive",
        _post("/policies/rollback"),
        arguments=_now_argument,
    ),
)
