"""The route table of roverd's control socket."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.keys import fingerprint
from protocol.messages import Order
from protocol.node.config import show
from protocol.node.socket import Request, RequestError, Route
from protocol.pairing import DEFAULT_PORT
from roverd import doctor
from roverd.orders import LOCAL, MAX_EPISODES, MAX_SEED
from roverd.pairing import Pairing, PairingSlot
from roverd.policy_api import policy_routes
from roverd.selfcheck import SelfCheckError

if TYPE_CHECKING:
    from protocol.node.config import Loaded
    from roverd.assemble import Parts
    from roverd.settings import Settings

MAX_HUMAN_S = 60.0
MAX_HOST = 253


def routes(parts: Parts, loaded: Loaded[Settings]) -> list[Route]:
    """Return every route; handlers see only ``parts``."""
    api = Api(parts, loaded)
    return [
        Route("GET", "/status", api.get_status, mutating=False),
        Route("GET", "/doctor", api.get_doctor, mutating=False),
        Route("GET", "/lateness", api.get_lateness, mutating=False),
        *policy_routes(parts),
        Route("POST", "/episode/start", api.start, mutating=True),
        Route("POST", "/episode/stop", api.stop, mutating=True),
        Route("POST", "/e_stop", api.e_stop, mutating=True),
        Route("POST", "/clear", api.clear, mutating=True),
        Route("POST", "/drive", api.drive, mutating=True),
        Route("GET", "/keys", api.get_keys, mutating=False),
        Route("GET", "/pair", api.get_pair, mutating=False),
        Route("POST", "/pair", api.pair, mutating=True),
        Route("POST", "/pair/accept", api.accept_pair, mutating=True),
        Route("POST", "/pair/cancel", api.cancel_pair, mutating=True),
        Route("POST", "/trust", api.trust, mutating=True),
        Route("GET", "/selfcheck", api.get_selfcheck, mutating=False),
        Route("POST", "/selfcheck", api.run_selfcheck, mutating=True),
        Route("POST", "/selfcheck/cancel", api.cancel_selfcheck, mutating=True),
        Route("GET", "/plugins", api.get_plugins, mutating=False),
        Route("GET", "/config", api.get_config, mutating=False),
        Route("GET", "/web", api.get_web, mutating=False),
        *parts.teleop.routes(),
    ]


class Api:
    """The handlers of the route table."""

    def __init__(self, parts: Parts, loaded: Loaded[Settings]) -> None:
        self._parts, self._loaded = parts, loaded
        self._pairing = PairingSlot()

    async def get_status(self, _: Request) -> dict[str, Any]:
        """Answer what roverctl status shows."""
        return status(self._parts)

    async def get_doctor(self, _: Request) -> dict[str, Any]:
        """Answer the checks of this machine."""
        return await doctor.examine(self._parts)

    async def get_lateness(self, request: Request) -> dict[str, Any]:
        """Answer how late each of the last ticks was, from the count ``since`` on, for benches and plots."""
        since = request.query.get("since", "0")
        if not since.isdecimal():
            raise RequestError(400, f"lateness: since={since[:20]} is not a whole number")
        ticks_ns, actions_ns = self._parts.drive.lateness.since(int(since))
        return {"count": self._parts.drive.lateness.count, "ticks_ns": ticks_ns, "actions_ns": actions_ns}

    async def start(self, request: Request) -> dict[str, Any]:
        """Drive on after a stop, or let a scripted controller drive some episodes."""
        if controller := request.body.get("controller"):
            if not self._parts.selfcheck.is_armed:
                raise RequestError(409, f"episode start: unarmed: {self._parts.selfcheck.refusal}; roverctl selfcheck")
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
        if owner := self._parts.teleop.wheel.owner:
            raise RequestError(409, f"drive: {owner} has the wheel; roverctl wheel release --force gives it back")
        if self._parts.selfcheck.is_running:  # one action would only disturb it; whoever takes the wheel breaks it off
            raise RequestError(409, "drive: the self-check moves the robot; wait for its end, or take the wheel")
        if not self._parts.drive.human(action, seconds):
            raise RequestError(409, f"drive: the robot stands still ({self._parts.drive.mode}); see roverctl status")
        return {"action": list(action), "seconds": seconds}

    async def get_keys(self, _: Request) -> dict[str, Any]:
        """Show this rover's public key and the trainer that it trusts."""
        return key_facts(self._parts)

    async def get_pair(self, _: Request) -> dict[str, Any]:
        """Show how far the pairing is that was begun last, and what became of the link."""
        pairing = self._pairing.current
        facts = pairing.to_map() if pairing is not None else {"state": "none", "reason": ""}
        uplink = self._parts.uplink
        return {**facts, "link": {"state": uplink.state, "refusal": uplink.refusal}}

    async def pair(self, request: Request) -> dict[str, Any]:
        """Begin to pair with the trainer at a host, in place of a pairing that is under way."""
        host, port = request.body.get("host"), request.body.get("port", DEFAULT_PORT)
        if not isinstance(host, str) or not 0 < len(host) <= MAX_HOST or not host.isprintable():
            raise RequestError(400, f"pair: host {host!r:.80} is no name or address")
        if type(port) is not int or not 0 < port < 1 << 16:
            raise RequestError(400, f"pair: port {port!r:.20} is not a whole number of 1 to 65535")
        self._check_setting()
        await self._pairing.begin(Pairing(self._parts.keys, self._parts.settings.rover_id, host, port))
        return await self.get_pair(request)

    async def accept_pair(self, request: Request) -> dict[str, Any]:
        """Trust the trainer: the person saw that trainerctl printed this rover's name after the code was typed."""
        pairing, code = self._pairing.current, request.body.get("code")
        if pairing is None or not pairing.code or pairing.code != code:
            raise RequestError(409, f"pair: no pairing with code {code!r:.20} is under way; roverctl pair HOST")
        try:
            is_news = pairing.accept(self._parts.trust)
        except RoverError as error:
            raise RequestError(409, str(error)) from error
        self._make_link_anew(is_news=is_news)
        answer = {**await self.get_pair(request), **_hint(self._parts)}
        return answer if is_news else {**answer, "already_trusted": True}

    async def cancel_pair(self, _: Request) -> dict[str, Any]:
        """Give the pairing up that is under way."""
        is_change = await self._pairing.cancel("it was given up at the rover")
        return {} if is_change else {"already_over": True}

    async def trust(self, request: Request) -> dict[str, Any]:
        """Trust the trainer of a key that was brought by hand."""
        key, address = request.body.get("key"), request.body.get("address", "")
        if not isinstance(key, str) or not isinstance(address, str) or len(address) > MAX_HOST:
            raise RequestError(400, "trust: the key and the address must be texts")
        if address and not address.startswith(("tcp://", "ipc://")):
            raise RequestError(400, f"trust: address {address!r:.80} is not like tcp://HOST:PORT")
        self._check_setting()
        try:
            is_news = self._parts.trust.trust(key, address)
        except RoverError as error:
            raise RequestError(409, str(error)) from error
        self._make_link_anew(is_news=is_news)
        answer = {**key_facts(self._parts), **_hint(self._parts)}
        return answer if is_news else {**answer, "already_trusted": True}

    def _check_setting(self) -> None:
        """Refuse to pin a trainer where the settings name one: they would win, and nobody would see why."""
        if self._parts.settings.link.trainer_key:
            raise RequestError(409, "pair: link.trainer_key in the settings names the trainer; remove it first")

    def _make_link_anew(self, *, is_news: bool) -> None:
        if is_news or not self._parts.uplink.is_linked:
            self._parts.uplink.rekey(self._parts.keys, self._parts.trust.public)

    async def get_selfcheck(self, _: Request) -> dict[str, Any]:
        """Show the newest self-check, and whether a policy may drive."""
        return self._parts.selfcheck.to_map()

    async def run_selfcheck(self, _: Request) -> dict[str, Any]:
        """Move the robot a little and judge what it measured; answers when it is over."""
        try:
            return await self._parts.selfcheck.run()
        except SelfCheckError as error:
            raise RequestError(409, str(error)) from error

    async def cancel_selfcheck(self, _: Request) -> dict[str, Any]:
        """Break the self-check off that is under way."""
        return {} if self._parts.selfcheck.cancel("it was cancelled") else {"already_over": True}

    async def get_plugins(self, _: Request) -> dict[str, Any]:
        """List plugins with their calls and faults."""
        return {"plugins": self._parts.plugins.listing()}

    async def get_web(self, _: Request) -> dict[str, Any]:
        """Say where the page is; whoever may ask here may drive, so the address has the token."""
        page = self._parts.page
        return {**page.status(), "url": page.url if page.state == "serving" else ""}

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
            "pid": policies.pid,
            **policies.report(),
        },
        "control": {
            "pid": parts.control.pid,
            "has_spare": parts.control.has_spare,
            "takeovers": parts.control.takeovers,
            "actuator": parts.settings.actuator or "simulated",
            "actuator_failure": parts.control.actuator_failure,
            **{key: drive.counts[key] for key in ("missed", "skipped", "dropped_frames")},
            "lateness": drive.lateness.report(),
            "realtime": parts.realtime(),
        },
        "link": {
            "state": uplink.state,
            "trainer": uplink.address,
            "trainer_id": uplink.trainer_id,
            "refusal": uplink.refusal,
            "credit": uplink.credit,
            "degraded": uplink.degraded,
            "unacknowledged": len(parts.spool),
            "resent": parts.spool.resent,
            "overflow": parts.spool.overflow,
            "round_trip_ms": None if math.isnan(uplink.round_trip_ms) else round(uplink.round_trip_ms, 3),
            **uplink.counts,
        },
        "wheel": parts.teleop.wheel.status(),
        "collection": parts.teleop.collecting.status(),
        "web": parts.page.status(),
        "spool": parts.spool.report(),
        "order_id": drive.order_id,
        "reward_weights": parts.weights,
    }


def key_facts(parts: Parts) -> dict[str, Any]:
    """Return who this rover is and whom it trusts, by their public keys."""
    public = parts.keys.public
    trainer = parts.settings.link.trainer_key or parts.trust.public
    return {
        "rover_id": parts.settings.rover_id,
        "public": public,
        "fingerprint": fingerprint(public),
        "trainer": trainer,
        "trainer_fingerprint": fingerprint(trainer) if trainer else "",
        "trainer_address": parts.trust.address,
        "paired_at": parts.trust.paired_at,
    }


def _hint(parts: Parts) -> dict[str, str]:
    """Say so where the link goes elsewhere than to the trainer that was paired with."""
    wanted, address = parts.settings.link.trainer, parts.trust.address
    if not address or not wanted or wanted == address:
        return {}
    return {"hint": f"the link goes to {wanted}, the paired trainer is at {address}: set link.trainer to that"}


def _causes(parts: Parts) -> list[str]:
    causes = []
    if parts.uplink.state in {"refused", "unpaired"}:
        causes.append(f"link {parts.uplink.state}: {parts.uplink.refusal}")
    elif parts.uplink.degraded:
        causes.append(f"link: {parts.uplink.degraded}")
    elif not parts.uplink.is_linked:
        causes.append(f"link: no trainer answers at {parts.uplink.address}")
    if parts.policies.driving is None:
        causes.append("policy: none is loaded, the robot stands still")
    if parts.drive.e_stop:
        causes.append(f"e-stop: {parts.drive.e_stop}; roverctl clear")
    if parts.control.actuator_failure:
        causes.append(f"actuator: {parts.control.actuator_failure}; see the cable and the motor controller")
    if parts.control.needs_spare and not parts.control.has_spare:
        causes.append("control: no spare stands by; it is started again within seconds")
    if parts.drive.is_task_disabled:
        causes.append("task: the plugin failed too often and is disabled; see roverctl plugins, mend it and restart")
    causes += [*parts.teleop.causes, *parts.page.causes]
    causes += parts.selfcheck.causes()
    causes += parts.spool.causes()
    causes += [
        f"plugin {row['group']}.{row['name']}: {row['state']}, {row['last_error']}"
        for row in parts.plugins.listing()
        if row["state"] == "disabled"
    ]
    return causes


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
