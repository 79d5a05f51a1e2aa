"""What a person who drives can see and do, whatever he drives with: the terminal and the web page ask here."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.node.socket import Request, RequestError, Route
from roverd.collect import MAX_TARGET

if TYPE_CHECKING:
    from roverd.axes import Axes
    from roverd.collect import Collecting
    from roverd.drive import Drive
    from roverd.policies import Policies
    from roverd.telemetry import Telemetry
    from roverd.uplink import Uplink
    from roverd.wheel import Wheel

LOCK_STEP = "this robot runs in lock-step (control.rate_hz 0), faster than anybody can drive; see roverd --profile live"


class Teleop:
    """The one place where a person's commands come in. The loop thread owns it."""

    def __init__(
        self,
        rover_id: str,
        *,
        drive: Drive,
        wheel: Wheel,
        collecting: Collecting,
        telemetry: Telemetry,
        policies: Policies,
        uplink: Uplink,
    ) -> None:
        """Take the parts, and let them hear of each other."""
        self.rover_id = rover_id
        self.drive, self.wheel, self.collecting, self.telemetry = drive, wheel, collecting, telemetry
        self._policies, self._uplink = policies, uplink
        drive.on_tick = telemetry.saw
        drive.on_episode_end = collecting.ended
        drive.is_wheel_taken = lambda: bool(wheel.owner)
        wheel.on_change = collecting.wheel_changed

    @property
    def axes(self) -> Axes:
        """What can be pushed."""
        return self.wheel.axes

    @property
    def causes(self) -> list[str]:
        """What health is to be told."""
        return [self.wheel.cause] if self.wheel.cause else []

    def view(self) -> dict[str, Any]:
        """Return what a driver looks at, many times a second; the shape is append-only."""
        round_trip_ms = self._uplink.round_trip_ms
        return {
            "mode": self.drive.mode,
            "e_stop": self.drive.e_stop,
            "is_in_episode": self.drive.is_in_episode,
            "ticks_per_second": round(self.drive.rates[0], 1),
            "driving": self._policies.slot_name(self._policies.active)[:12],
            "last_outcome": self.drive.last_outcome,
            "link": {
                "state": self._uplink.state,
                "round_trip_ms": None if math.isnan(round_trip_ms) else round(round_trip_ms, 1),
            },
            "wheel": self.wheel.status(),
            "collection": self.collecting.status(),
            **self.telemetry.to_map(),
        }

    def push(self, owner: str, pushes: object, *, age_s: float) -> bool:
        """Drive by a client's pushes of that age; False where the robot does not move for them; raises RoverError."""
        return self.wheel.drive(owner, self.axes.check(pushes), age_s=age_s)

    # -- the control socket -----------------------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """Return the routes of the control socket; commands that come many times a second are not audited."""
        return [
            Route("GET", "/wheel", self._get, mutating=False),
            Route("POST", "/wheel/take", self._take, mutating=True),
            Route("POST", "/wheel/drive", self._drive, mutating=False),
            Route("POST", "/wheel/release", self._release, mutating=True),
            Route("GET", "/collect", self._get_collection, mutating=False),
            Route("POST", "/collect/start", self._start, mutating=True),
            Route("POST", "/collect/stop", self._stop, mutating=True),
            Route("POST", "/collect/next", self._next, mutating=True),
            Route("POST", "/collect/judge", self._judge, mutating=True),
        ]

    async def _get(self, _: Request) -> dict[str, Any]:
        return {"rover_id": self.rover_id, "axes": self.axes.to_list(), "view": self.view()}

    async def _take(self, request: Request) -> dict[str, Any]:
        owner, by_force = _text(request, "owner"), request.body.get("force") is True
        is_change = _refusing(lambda: self.wheel.take(owner, by_force=by_force))
        answer = {"owner": owner, "axes": self.axes.to_list(), "rover_id": self.rover_id}
        return answer if is_change else {**answer, "already_taken": True}

    async def _drive(self, request: Request) -> dict[str, Any]:
        sent_ns = request.body.get("sent_ns", 0)
        if type(sent_ns) is not int:
            raise RequestError(400, f"wheel: sent_ns {sent_ns!r:.40} is not a whole number")
        age_s = (time.monotonic_ns() - sent_ns) * 1e-9 if sent_ns else 0.0  # it may have waited for a roverd that hung
        pushes = request.body.get("axes")
        is_obeyed = _refusing(lambda: self.push(_text(request, "owner"), pushes, age_s=age_s))
        return {"is_obeyed": is_obeyed, "view": self.view()}

    async def _release(self, request: Request) -> dict[str, Any]:
        by_force = request.body.get("force") is True
        owner = str(request.body.get("owner") or "roverctl")
        before = self.wheel.owner
        is_change = _refusing(lambda: self.wheel.release(owner, by_force=by_force))
        return {"released": before} if is_change else {"already_free": True}

    async def _get_collection(self, _: Request) -> dict[str, Any]:
        return {"collection": self.collecting.status()}

    async def _start(self, request: Request) -> dict[str, Any]:
        texts = {name: _text(request, name, "") for name in ("mode", "name", "task", "controller")}
        target, seed = request.body.get("episodes"), request.body.get("seed")
        if type(target) is not int:
            raise RequestError(400, f"collect: episodes {target!r:.40} is not a whole number of 1 to {MAX_TARGET}")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 61):
            raise RequestError(400, f"collect: seed {seed!r:.40} is not a whole number from 0 on")
        mode = texts.pop("mode")
        _refusing(lambda: self.collecting.start(mode, target, seed=seed, **texts))
        return {"collection": self.collecting.status()}

    async def _stop(self, _: Request) -> dict[str, Any]:
        is_change = self.collecting.stop()
        answer = {"collection": self.collecting.status()}
        return answer if is_change else {**answer, "already_over": True}

    async def _next(self, _: Request) -> dict[str, Any]:
        is_change = _refusing(self.collecting.next_episode)
        answer = {"collection": self.collecting.status()}
        return answer if is_change else {**answer, "already_begun": True}

    async def _judge(self, request: Request) -> dict[str, Any]:
        _refusing(lambda: self.collecting.judge(_text(request, "verdict")))
        return {"collection": self.collecting.status()}


def _text(request: Request, name: str, default: str | None = None) -> str:
    value = request.body.get(name, default)
    if not isinstance(value, str):
        raise RequestError(400, f"{name} {value!r:.40} is not a text")
    return value


def _refusing(call: Any) -> Any:
    try:
        return call()
    except RoverError as error:
        raise RequestError(409, str(error)) from error
