"""Who listens on a port of this machine, on which address, and which process that is."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LISTENS = "0A"
"""TCP_LISTEN in ``/proc/net/tcp``."""


class Listener(NamedTuple):
    """A socket that listens: on which address (0.0.0.0 and :: are all), and whose it is as far as one may know."""

    host: str
    port: int
    pid: int = 0
    owner: str = ""


def listeners(port: int, proc: Path = Path("/proc")) -> list[Listener]:
    """Return who listens on a TCP port of this machine."""
    found = []
    for table in ("tcp", "tcp6"):
        path = proc / "net" / table
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        found += [each for line in lines if (each := parse_listener(line)) and each[0].port == port]
    owners = _owners({inode for _, inode in found}, proc) if found else {}
    return [Listener(each.host, each.port, *owners.get(inode, (0, ""))) for each, inode in found]


def parse_listener(line: str) -> tuple[Listener, str] | None:
    """Read a line of ``/proc/net/tcp`` or ``tcp6`` as (listener, inode); None where it is no listening socket."""
    words = line.split()
    if len(words) < 10 or words[3] != LISTENS:
        return None
    raw, _, port = words[1].partition(":")
    packed = b"".join(struct.pack("=I", int(raw[at : at + 8], 16)) for at in range(0, len(raw), 8))
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return Listener(str(mapped or address), int(port, 16)), words[9]


def _owners(inodes: set[str], proc: Path) -> dict[str, tuple[int, str]]:
    """Find the processes that hold sockets; those of other users stay unknown."""
    found: dict[str, tuple[int, str]] = {}
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            held = inodes.intersection(_sockets(process))
            if held:
                name = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.update({inode: (int(process.name), name[:80]) for inode in held if inode not in found})
    return found


def _sockets(process: Path) -> Iterator[str]:
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                yield target[8:-1]


def describe(found: Sequence[Listener]) -> str:
    """Say in words who listens."""
    texts = [
        f"{each.host}:{each.port}" + (f" (pid {each.pid}: {each.owner})" if each.pid else " (another user's process)")
        for each in found
    ]
    return ", ".join(texts)
