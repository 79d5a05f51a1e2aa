"""The route table of roverd's control socket."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.messages import Order
from protocol.node.config import show
from protocol.node.socket import Request, RequestError, Route
from roverd import doctor
from roverd.drive import LOCAL, MAX_EPISODES, MAX_SEED

if TYPE_CHECKING:
    from protocol.node.config import Loaded
    from roverd.assemble import Parts
    from roverd.settings import Settings

MAX_HUMAN_S = 60.0


def routes(parts: Parts, loaded: Loaded[Settings]) -> list[Route]:
    """Return every route; handlers see only ``parts``."""
    api = Api(parts, loaded)
    return [
        Route("GET", "/status", api.get_status, mutating=False),
        Route("GET", "/doctor", api.get_doctor, mutating=False),
        Route("GET", "/policies", api.get_policies, mutating=False),
        Route("POST", "/policies/reload", api.reload, mutating=True),
        Route("POST", "/policies/rollback", api.rollback, mutating=True),
        Route("POST", "/episode/start", api.start, mutating=True),
        Route("POST", "/episode/stop", api.stop, mutating=True),
        Route("POST", "/e_stop", api.e_stop, mutating=True),
        Route("POST", "/clear", api.clear, mutating=True),
        Route("POST", "/drive", api.drive, mutating=True),
        Route("GET", "/plugins", api.get_plugins, mutating=False),
        Route("GET", "/config", api.get_config, mutating=False),
    ]


class Api:
    """The handlers of the route table."""

    def __init__(self, parts: Parts, loaded: Loaded[Settings]) -> None:
        self._parts, self._loaded = parts, loaded

    async def get_status(self, _: Request) -> dict[str, Any]:
        """Answer what roverctl status shows."""
        return status(self._parts)

    async def get_doctor(self, _: Request) -> dict[str, Any]:
        """Answer the checks of this machine."""
        checks = doctor.run(self._parts)
        return {"checks": checks, "healthy": all(check["ok"] for check in checks)}

    async def get_policies(self, _: Request) -> dict[str, Any]:
        """List the stored policies and mark the one that drives."""
        driving = self._parts.policies.driving_id
        return {"policies": [{**row, "driving": row["policy_id"] == driving} for row in self._parts.store.listing()]}

    async def reload(self, _: Request) -> dict[str, Any]:
        """Load the wanted policy again."""
        return {"policy_id": _refusing(self._parts.policies.reload)}

    async def rollback(self, _: Request) -> dict[str, Any]:
        """Let the policy before drive."""
        return {"policy_id": _refusing(self._parts.policies.rollback)}

    async def start(self, request: Request) -> dict[str, Any]:
        """Drive on after a stop, or let a scripted controller drive some episodes."""
        if controller := request.body.get("controller"):
            episodes, seed = request.body.get("episodes", 1), request.body.get("seed", 2_000_000)
            for name, value, limit in (("episodes", episodes, MAX_EPISODES), ("seed", seed, MAX_SEED - 1)):
                if type(value) is not int or not 0 <= value <= limit:
                    raise RequestError(400, f"episode start: {name} {value} is not a whole number of 0 to {limit}")
            order_id = f"{LOCAL}{time.monotonic_ns()}"
            self._parts.drive.ordered(Order(order_id, "evaluate", str(controller), episodes=episodes, seed=seed))
        self._parts.drive.hold(is_held=False)
        return {"mode": self._parts.drive.mode}

    async def stop(self, _: Request) -> dict[str, Any]:
        """End the episode and stand still."""
        self._parts.drive.hold(is_held=True)
        return {"mode": self._parts.drive.mode}

    async def e_stop(self, request: Request) -> dict[str, Any]:
        """Latch the emergency stop."""
        already = bool(self._parts.drive.e_stop)
        self._parts.drive.latch_e_stop(str(request.body.get("reason", "")))
        return {"already_latched": already}

    async def clear(self, _: Request) -> dict[str, Any]:
        """Release the emergency stop."""
        already = not self._parts.drive.e_stop
        self._parts.drive.clear_e_stop()
        return {"already_clear": already}

    async def drive(self, request: Request) -> dict[str, Any]:
        """Take a human's action."""
        action, seconds = _human_action(self._parts, request)
        if not self._parts.drive.human(action, seconds):
            raise RequestError(409, f"drive: the robot stands still ({self._parts.drive.mode}); see roverctl status")
        return {"action": list(action), "seconds": seconds}

    async def get_plugins(self, _: Request) -> dict[str, Any]:
        """List plugins with their calls and faults."""
        return {"plugins": self._parts.plugins.listing()}

    async def get_config(self, _: Request) -> dict[str, Any]:
        """List the effective options with their origins."""
        rows = show(self._loaded, with_origin=True)
        return {"config": [{"name": name, "value": value, "origin": origin} for name, value, origin in rows]}


def status(parts: Parts) -> dict[str, Any]:
    """Return what roverctl status shows; the shape is append-only."""
    drive, policies, uplink = parts.drive, parts.policies, parts.uplink
    ticks_per_s, decisions_per_s = drive.rates
    causes = _causes(parts)
    return {
        "rover_id": parts.settings.rover_id,
        "boot_id": parts.boot_id,
        "robot": parts.robot.spec.name,
        "task": parts.task.spec.name,
        "spec_hash": parts.robot.spec.hash,
        "uptime_s": round(time.monotonic() - parts.started_s, 3),
        "mode": drive.mode,
        "health": {"ok": not causes, "causes": causes},
        "ticks": drive.counts["ticks"],
        "decisions": drive.counts["decisions"],
        "episodes": drive.counts["episodes"],
        "successes": drive.counts["successes"],
        "ticks_per_second": round(ticks_per_s, 1),
        "decisions_per_second": round(decisions_per_s, 1),
        "tick_gaps": drive.counts["gaps"],
        "waits": drive.counts["waits"],
        "last_outcome": drive.last_outcome,
        "digest": drive.digest,
        "swaps": policies.swaps,
        "policy": {
            "driving": policies.slot_name(policies.active),
            "policy_id": policies.driving_id,
            "counter": policies.counter,
            "wanted": policies.target.name if policies.target else "",
            "refusals": policies.refusals,
            "crashes": policies.crashes,
        },
        "link": {
            "state": uplink.state,
            "trainer": parts.settings.link.trainer,
            "trainer_id": uplink.trainer_id,
            "refusal": uplink.refusal,
            "credit": uplink.credit,
            "unacknowledged": len(parts.outbox),
            "resent": parts.outbox.resent,
            "overflow": parts.outbox.overflow,
            "round_trip_ms": None if math.isnan(uplink.round_trip_ms) else round(uplink.round_trip_ms, 3),
            **uplink.counts,
        },
        "order_id": drive.order_id,
        "reward_weights": parts.weights,
    }


def _causes(parts: Parts) -> list[str]:
    causes = []
    if parts.uplink.state == "refused":
        causes.append(f"link refused: {parts.uplink.refusal}")
    elif not parts.uplink.is_linked:
        causes.append(f"link: no trainer answers at {parts.settings.link.trainer}")
    if parts.policies.driving is None:
        causes.append("policy: none is loaded, the robot stands still")
    if parts.drive.e_stop:
        causes.append(f"e-stop: {parts.drive.e_stop}; roverctl clear")
    if parts.drive.is_task_disabled:
        causes.append("task: the plugin failed too often and is disabled; see roverctl plugins, mend it and restart")
    if parts.outbox.overflow:
        causes.append(f"link: {parts.outbox.overflow} records were dropped while the trainer was away")
    causes += [
        f"plugin {row['group']}.{row['name']}: {row['state']}, {row['last_error']}"
        for row in parts.plugins.listing()
        if row["state"] == "disabled"
    ]
    return causes


def _refusing(call: Any) -> str:
    try:
        return str(call())
    except RoverError as error:
        raise RequestError(409, str(error)) from error


def _human_action(parts: Parts, request: Request) -> tuple[tuple[float, ...], float]:
    wanted = request.body.get("action")
    size = len(parts.robot.spec.action)
    try:
        action = tuple(float(value) for value in wanted) if wanted is not None else ()
        seconds = float(request.body.get("seconds", 0.5))
    except (TypeError, ValueError) as error:
        raise RequestError(400, f"drive: {error}") from error
    if len(action) != size or not all(map(math.isfinite, action)):
        names = [f"{e.name} {e.unit}" for e in parts.robot.spec.action]
        raise RequestError(400, f"drive: action {wanted} is not {size} finite numbers ({', '.join(names)})")
    for value, element in zip(action, parts.robot.spec.action, strict=True):
        if not element.low <= value <= element.high:
            text = f"drive: {element.name} {value:g} is not within {element.low:g} to {element.high:g} {element.unit}"
            raise RequestError(400, text)
    if not 0 < seconds <= MAX_HUMAN_S:
        raise RequestError(400, f"drive: seconds {seconds} is not within 0 to {MAX_HUMAN_S:g}")
    return action, seconds
