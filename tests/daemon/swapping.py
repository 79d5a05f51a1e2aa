"""A rover with a clock that drives policies made here, whose every step is followed."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.node.socket import ControlClient
from roverd.policy_commands import send_file
from tests.daemon.daemons import OPEN, Site, driving, free_port, wait_until
from tests.daemon.policies import CLOCKED, Maker
from tests.daemon.track import Track

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.daemons import Daemon

PATIENCE_S = 30.0
EPISODE_S = 1.0


class World:
    """The rover, a recorder in place of its trainer, and files for the next policies."""

    def __init__(self, folder: Path, track: Track, maker: Maker, rover: Daemon) -> None:
        self.folder, self.track, self.maker, self.rover = folder, track, maker, rover
        self.number = 1

    @property
    def client(self) -> ControlClient:
        return ControlClient(self.rover.socket, timeout_s=PATIENCE_S)

    def next_file(self, **changes: Any) -> Path:
        """Write the next policy."""
        self.number += 1
        return self.maker.write(self.folder, self.number, **changes)

    def state(self) -> dict[str, Any]:
        return self.client.get("/policies/transaction")

    def install(self, *, now: bool, **changes: Any) -> tuple[str, float]:
        """Install a new policy and wait until it drives; return its id and the seconds."""
        path = self.next_file(**changes)
        began = time.monotonic()
        policy_id = send_file(self.client, path, now=now)["policy_id"]
        wait_until(lambda: self.state()["driving"] == policy_id, PATIENCE_S, what="the new policy drives")
        seconds = time.monotonic() - began
        path.unlink()
        return policy_id, seconds

    def wait_steps(self, count: int) -> None:
        """Wait until so many more steps came in."""
        goal = len(self.track) + count

        def are_there() -> bool:
            self.track.check()
            return len(self.track) >= goal

        wait_until(are_there, PATIENCE_S, what=f"{count} steps")

    def wait_stage(self, stage: str) -> None:
        wait_until(lambda: self.state()["transaction"]["stage"] == stage, PATIENCE_S, what=stage)


@contextmanager
def clocked_world(**settings: Any) -> Iterator[World]:
    """Start everything; policy 2 drives, policy 1 stands by."""
    with tempfile.TemporaryDirectory(prefix="roverloop-swap-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        maker, port = Maker.of(), free_port()
        site = Site(folder, curve=False)
        OPEN.append(site)
        try:
            with Track(port, maker) as track:
                all_settings = {**CLOCKED, "plugins.goal.time_limit_s": EPISODE_S, **settings}
                rover = site.rover(all_settings, "--policy", str(maker.write(folder, 1)), port=port)
                driving(rover)
                made = World(folder, track, maker, rover)
                made.install(now=True)
                made.wait_steps(10)
                yield made
        finally:
            wrong = site.close()
            OPEN.remove(site)
        assert not wrong, "\n".join([*wrong, *(each.log_text()[-3000:] for each in site.daemons)])
