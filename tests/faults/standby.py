"""A stand whose rover drives by a real policy, with the policy before it standing by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.seed_policy import bundles, specs
from tests.daemon.daemons import driving, wait_until
from tests.faults.stand import DELAY_MS, RATE_HZ, Stand

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.daemons import Site

TIMING = {"control_rate_hz": RATE_HZ, "action_delay_ms": DELAY_MS}


class StandbyStand(Stand):
    """``first`` stands by, ``second`` drives; what breaks ``second`` lets ``first`` answer.

    A policy whose process died twice in a minute is refused: ``advance`` lets the next of ``count`` ones drive.
    """

    def __init__(self, site: Site, folder: Path, *, count: int = 2, name: str = "standby") -> None:
        paths = []
        for index, content in enumerate(bundles(*specs("synthetic", "goal", TIMING), count, encoder="column")):
            paths.append(folder / f"{name}-{index}.bundle")
            paths[-1].write_bytes(content)
        own = {"robot": "synthetic", "policy.shadow_ticks": 2, "policy.watch_ticks": 0}
        own |= {f"plugins.synthetic.{key}": value for key, value in TIMING.items()}
        super().__init__(site, own, "--policy", str(paths[0]), name=name)
        driving(self.rover)
        self.second = self.driving_id()
        self._waiting = iter(paths[1:])
        self.advance()

    def advance(self) -> None:
        """Let a policy drive that never did."""
        self.first = self.second
        answer = self.rover.ctl("policy", "install", str(next(self._waiting)), "--now")
        assert answer.status == 0, answer.err
        wait_until(lambda: self.driving_id() not in {"", self.first}, what="the second policy drives")
        self.second = self.driving_id()

    def driving_id(self) -> str:
        return str(self.rover.get()["policy"]["policy_id"])

    def wait_ready(self) -> None:
        """Wait until the second policy drives and the first one could stand in."""

        def is_ready() -> bool:
            status = self.rover.get()
            policy = status["policy"]
            return policy["policy_id"] == self.second and policy["standby"]["role"] == "fallback" and status["ticks"]

        wait_until(is_ready, what="the second drives and the first stands by")
