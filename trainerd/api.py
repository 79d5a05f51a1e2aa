"""The route table of trainerd: what trainerctl, and later the web page, may ask and command. Shapes are append-only."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from protocol.errors import RoverError
from protocol.keys import fingerprint
from protocol.node.config import show
from protocol.node.socket import Request, RequestError, Route
from trainerd import doctor
from trainerd.evaluate import Evaluation, evaluation_order, judge_ranking
from trainerd.learning import checkpoint
from trainerd.release.publish import LATEST
from trainerd.release.registry import NoSuchPolicyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.node.config import Loaded
    from trainerd.assemble import Daemon
    from trainerd.release.registry import Entry
    from trainerd.settings import Settings

HEX = re.compile(r"[0-9a-f]{6,64}")
MAX_EPISODES = 100_000
LINT_EPISODES = 20
DEFAULT_SEED = 1_000_000
"""Arenas from here on are for reporting: no training episode uses them."""
LINT_SEED = 2_000_000
"""Arenas from here on are for choices, such as that of a reward: no reported figure uses them."""


class Api:
    """Answer requests; every method that touches rovers runs on the link thread."""

    def __init__(self, daemon: Daemon, loaded: Loaded[Settings]) -> None:
        """Serve a daemon."""
        self._daemon = daemon
        self._loaded = loaded
        self._began_s = time.monotonic()
        self._lints: dict[str, list[str]] = {}

    def routes(self) -> list[Route]:
        """Return the route table."""
        return [
            Route("GET", "/status", self.status, mutating=False),
            Route("GET", "/rovers", self.rovers, mutating=False),
            Route("GET", "/policies", self.policies, mutating=False),
            Route("GET", "/policies/{id}", self.policy, mutating=False),
            Route("GET", "/checkpoints", self.checkpoints, mutating=False),
            Route("GET", "/plugins", self.plugins, mutating=False),
            Route("GET", "/config", self.config, mutating=False),
            Route("GET", "/doctor", self.doctor, mutating=False),
            Route("GET", "/evaluations", self.evaluations, mutating=False),
            Route("GET", "/evaluations/{id}", self.evaluation, mutating=False),
            Route("GET", "/reward/lints/{id}", self.lint, mutating=False),
            Route("GET", "/keys", self.keys, mutating=False),
            Route("GET", "/pairing", self.pairing, mutating=False),
            Route("POST", "/pairing/confirm", self.confirm_pairing, mutating=True),
            Route("POST", "/rovers/{id}/keys", self.add_key, mutating=True),
            Route("POST", "/rovers/{id}/revoke", self.revoke_keys, mutating=True),
            Route("POST", "/train/{verb}", self.train, mutating=True),
            Route("POST", "/checkpoints", self.save_checkpoint, mutating=True),
            Route("POST", "/checkpoints/{name}/restore", self.restore_checkpoint, mutating=True),
            Route("POST", "/policies/rollback", self.rollback, mutating=True),
            Route("POST", "/policies/{id}/deploy", self.deploy, mutating=True),
            Route("POST", "/evaluate", self.evaluate, mutating=True),
            Route("POST", "/reward/lint", self.begin_lint, mutating=True),
        ]

    async def status(self, _request: Request) -> dict[str, Any]:
        """Give the state of everything in one answer."""
        daemon = self._daemon
        payload = await daemon.mailbox.call(self._link_status)
        training, publisher, settings = daemon.training, daemon.publisher, self._loaded.value
        learner = training.parts.learner if training.parts else None
        pipeline = training.parts.pipeline if training.parts else None
        causes = [*payload.pop("causes"), *training.causes()]
        if not daemon.store.is_open:
            causes.append(f"store: {daemon.store.reason}")
        newest = daemon.registry.newest(publisher.run_id)
        payload["policy"] |= {
            "latest": newest.policy_id if newest else None,
            "counter": newest.counter if newest else None,
            "wanted": publisher.wanted.policy_id if publisher.wanted else None,
            "wanted_counter": publisher.wanted.counter if publisher.wanted else None,
            "is_following": publisher.is_following,
            "exports": publisher.exports,
            "export_failed": pipeline.failed if pipeline else 0,
            "export_skipped": pipeline.skipped if pipeline else 0,
        }
        return {
            "state": training.state,
            "is_ready": training.ready.is_set(),
            "is_frozen": settings.train.frozen,
            "health": {"ok": not causes, "causes": causes},
            "run_id": publisher.run_id,
            "uptime_s": round(time.monotonic() - self._began_s, 3),
            "updates": learner.updates if learner else 0,
            "decisions": learner.decisions if learner else 0,
            "decision_budget": settings.train.decisions,
            "last_update": training.last_update,
            "refused": list(training.refused),
            "checkpoint": {
                "latest": training.latest_checkpoint or None,
                "update": int(training.latest_checkpoint.rpartition("_")[2]) if training.latest_checkpoint else None,
            },
            "tensorboard_dir": str(settings.tensorboard_dir),
            "port": daemon.link.port,
            "pairing_port": daemon.pairing.port if daemon.pairing else None,
            "curve": settings.link.curve,
            "store": daemon.store.status(),
            "legacy": daemon.legacy.status() if daemon.legacy else None,
            **payload,
        }

    def _link_status(self) -> dict[str, Any]:
        daemon, now_s = self._daemon, time.monotonic()
        collection, fleet = daemon.collection, daemon.fleet
        alarms, tally, times = collection.alarms(), fleet.tally, fleet.update_to_driving_s
        return {
            "causes": [*fleet.causes(now_s), *alarms],
            "alarms": alarms,
            "decisions_received": collection.decisions.total,
            "decisions_per_second": round(collection.decisions.per_second(now_s), 3),
            "steps": {
                **collection.counters(),
                **asdict(tally),
                "malformed": sum(daemon.link.malformed.values()),
                "waiting": sum(boot.waiting for boot in fleet.boots.values()),
                "overflow": fleet.overflow,
            },
            "malformed": dict(daemon.link.malformed),
            "quarantined": collection.faults(),
            "success": collection.success(),
            "success_history": collection.success_history,
            "rovers": sum(rover.connected for rover in fleet.rovers.values()),
            "refused_hellos": dict(fleet.refused_hellos),
            "refused_keys": sum(daemon.link.zap.refusals.values()) if daemon.link.zap else 0,
            "last_refused_key": daemon.link.zap.last_refusal if daemon.link.zap else "",
            "policy": {
                "update_to_driving_s": {
                    "max": max(times, default=None),
                    "mean": sum(times) / len(times) if times else None,
                    "n": len(times),
                }
            },
        }

    async def rovers(self, _request: Request) -> dict[str, Any]:
        """List the rovers."""
        return {"rovers": await self._daemon.mailbox.call(lambda: self._daemon.fleet.rows(time.monotonic()))}

    async def keys(self, _request: Request) -> dict[str, Any]:
        """Show this trainer's public key, and which keys of which rovers it lets in."""
        public = self._daemon.keys.public
        return {"public": public, "fingerprint": fingerprint(public), "keys": self._daemon.access.rows()}

    async def pairing(self, _request: Request) -> dict[str, Any]:
        """List the rovers that wait for a person to type their code."""
        desk = self._daemon.pairing
        return {"enabled": desk is not None, "port": desk.port if desk else 0, "pending": desk.rows() if desk else []}

    async def confirm_pairing(self, request: Request) -> dict[str, Any]:
        """Let the rover in that shows a code."""
        desk = self._daemon.pairing
        if desk is None:
            hint = "set link.pairing, or exchange keys by hand: trainerctl rover add NAME KEY"
            raise RequestError(409, f"pairing: it is off; {hint}")
        code, again = _text(request, "code", ""), request.body.get("again") is True
        return cast("dict[str, Any]", _asked(partial(desk.confirm, code, again=again)))

    async def add_key(self, request: Request) -> dict[str, Any]:
        """Let a key in under a rover's name."""
        rover_id, public = request.params["id"], _text(request, "public", "")
        again = request.body.get("again") is True
        is_change = _asked(partial(self._daemon.access.add, rover_id, public, again=again))
        keys = len(self._daemon.access.keys_of(rover_id))
        answer = {"rover_id": rover_id, "fingerprint": fingerprint(public), "keys": keys}
        return answer if is_change else {**answer, "already_added": True}

    async def revoke_keys(self, request: Request) -> dict[str, Any]:
        """Shut a rover's keys out, or the one that is named, and cut its connections."""
        rover_id, key = request.params["id"], _text(request, "key", "") or None
        revoked = _asked(partial(self._daemon.access.revoke, rover_id, key))
        answer = {"rover_id": rover_id, "revoked": revoked, "fingerprints": [fingerprint(each) for each in revoked]}
        return answer if revoked else {**answer, "already_revoked": True}

    async def policies(self, _request: Request) -> dict[str, Any]:
        """List the policies on disk, newest first."""
        rows = [self._policy_row(entry) for entry in self._daemon.registry.entries()]
        return {"policies": rows, "damaged": self._daemon.registry.damaged}

    async def policy(self, request: Request) -> dict[str, Any]:
        """Show one policy with its manifest."""
        entry = self._entry(request.params["id"])
        return {**self._policy_row(entry), "manifest": asdict(entry.manifest)}

    async def checkpoints(self, _request: Request) -> dict[str, Any]:
        """List the checkpoints, newest first."""
        folder = self._loaded.value.checkpoint_dir
        rows = [
            {"name": path.name, "update": checkpoint.update_of(path), "time_s": path.stat().st_mtime}
            for path in reversed(checkpoint.found(folder))
        ]
        return {"checkpoints": rows, "folder": str(folder)}

    async def plugins(self, _request: Request) -> dict[str, Any]:
        """List the plugins of this daemon."""
        return {"plugins": self._daemon.plugins.listing()}

    async def config(self, _request: Request) -> dict[str, Any]:
        """Show every option with its value and where that came from."""
        rows = show(self._loaded, with_origin=True)
        return {
            "config": [{"name": name, "value": value, "origin": origin} for name, value, origin in rows],
            "state_dir": str(self._loaded.value.state_dir.resolve()),
        }

    async def doctor(self, _request: Request) -> dict[str, Any]:
        """Run the checks."""
        return await doctor.examine(self._daemon)

    async def train(self, request: Request) -> dict[str, Any]:
        """Start, pause, resume or stop training; a command that changes nothing says ``already_...``."""
        training, verb = self._daemon.training, request.params["verb"]
        verbs = {"start": training.start, "resume": training.start, "pause": training.pause, "stop": training.stop}
        if verb not in verbs:
            raise RequestError(404, f"train {verb}: no such command; there are {', '.join(verbs)}")
        is_change = _asked(verbs[verb])
        answer: dict[str, Any] = {"state": training.state}
        return answer if is_change else {**answer, f"already_{training.state}": True}

    async def save_checkpoint(self, _request: Request) -> dict[str, Any]:
        """Write a checkpoint between two updates."""
        try:
            path = await self._daemon.training.save()
        except RoverError as error:
            raise RequestError(409, str(error)) from error
        return {"checkpoint": path.name, "path": str(path)}

    async def restore_checkpoint(self, request: Request) -> dict[str, Any]:
        """Go on from a checkpoint."""
        name, folder = request.params["name"], self._loaded.value.checkpoint_dir
        path = next((path for path in checkpoint.found(folder) if path.name == name), None)
        if path is None:
            raise RequestError(404, f"checkpoint {name}: not in {folder}; see trainerctl checkpoint list")
        try:
            update = await self._daemon.training.restore(path)
        except RoverError as error:
            raise RequestError(409, str(error)) from error
        return {"checkpoint": name, "update": update}

    async def deploy(self, request: Request) -> dict[str, Any]:
        """Let the rovers drive a policy; ``latest`` follows the newest one again."""
        policy_id = request.params["id"]
        if policy_id != LATEST:
            self._entry(policy_id)
        try:
            entry, is_change = self._daemon.publisher.deploy(policy_id)
        except RoverError as error:
            raise RequestError(404, str(error)) from error
        answer = {**self._policy_row(entry), "is_following": self._daemon.publisher.is_following}
        return answer if is_change else {**answer, "already_deployed": True}

    async def rollback(self, _request: Request) -> dict[str, Any]:
        """Let the rovers drive the policy before this one."""
        return self._policy_row(_asked(self._daemon.publisher.rollback))

    async def evaluate(self, request: Request) -> dict[str, Any]:
        """Queue an evaluation on a rover: ``policy`` is latest, a policy id, or the name of a controller."""
        policy = _text(request, "policy", LATEST)
        episodes = _whole(request, "episodes", 400, 1, MAX_EPISODES)
        seed = _whole(request, "seed", DEFAULT_SEED, 0, 2**62)
        training = self._daemon.training
        if policy == LATEST and training.parts is not None:
            await asyncio.to_thread(training.parts.pipeline.drain)
        entry = self._evaluated_policy(policy)
        controller = "policy" if entry else policy
        evaluation = await self._daemon.mailbox.call(
            partial(self._ask, policy, controller, entry, episodes, seed, _text(request, "rover", ""))
        )
        return evaluation.to_map()

    async def evaluations(self, _request: Request) -> dict[str, Any]:
        """List the evaluations of this process."""
        return {"evaluations": await self._daemon.mailbox.call(self._daemon.fleet.evaluations.rows)}

    async def evaluation(self, request: Request) -> dict[str, Any]:
        """Show one evaluation, with its result as far as it is."""
        return await self._daemon.mailbox.call(lambda: self._evaluation(request.params["id"]).to_map())

    async def begin_lint(self, request: Request) -> dict[str, Any]:
        """Let a rover drive the scripted controllers that the task ranks, each in the same arenas."""
        episodes = _whole(request, "episodes", LINT_EPISODES, 1, MAX_EPISODES)
        seed = _whole(request, "seed", LINT_SEED, 0, 2**62)
        rover_id = _text(request, "rover", "")
        specs = self._daemon.fleet.specs
        if specs is None:
            raise RequestError(409, "reward lint: no rover has connected yet, so there is no task")
        names = list(dict.fromkeys(name for pair in specs[1].ranking for name in pair))
        if not names:
            raise RequestError(409, f"reward lint: task {specs[1].name} declares no ranking")
        asked = [
            await self._daemon.mailbox.call(partial(self._ask, name, name, None, episodes, seed, rover_id))
            for name in names
        ]
        lint_id = f"lint-{asked[0].order.order_id.removeprefix('evaluate-')}"
        self._lints[lint_id] = [each.order.order_id for each in asked]
        return {"id": lint_id, "evaluations": self._lints[lint_id], "stage": "queued"}

    async def lint(self, request: Request) -> dict[str, Any]:
        """Show how a lint is going, and its verdict on each pair once it has finished."""
        if request.params["id"] not in self._lints:
            raise RequestError(404, f"reward lint {request.params['id']}: no such lint")
        return await self._daemon.mailbox.call(lambda: self._lint(request.params["id"]))

    def _lint(self, lint_id: str) -> dict[str, Any]:
        parts = [self._evaluation(each) for each in self._lints[lint_id]]
        ended = sum(len(part.ends) for part in parts)
        facts = {"id": lint_id, "episodes_done": ended, "episodes": sum(part.order.episodes for part in parts)}
        failed = [part.reason for part in parts if part.stage == "failed"]
        if failed:
            return {**facts, "stage": "failed", "reason": failed[0], "pairs": []}
        if not all(part.is_over for part in parts):
            return {**facts, "stage": "running", "reason": "", "pairs": []}
        specs = self._daemon.fleet.specs
        returns = {part.policy: {serial: end.return_ for serial, end in part.ends.items()} for part in parts}
        pairs = judge_ranking(specs[1].ranking if specs else (), returns)
        return {**facts, "stage": "finished", "reason": "", "pairs": pairs, "passed": all(p["passed"] for p in pairs)}

    def _ask(
        self, policy: str, controller: str, entry: Entry | None, episodes: int, seed: int, rover_id: str
    ) -> Evaluation:
        """Queue a batch on the rover that is asked for, or on the one with the shortest queue; on the link thread."""
        fleet = self._daemon.fleet
        connected = [rover.rover_id for rover in fleet.rovers.values() if rover.connected]
        if not connected or (rover_id and rover_id not in connected):
            known = f"rover {rover_id} is not connected" if rover_id else "no rover is connected"
            raise RequestError(409, f"evaluate: {known}; connected: {', '.join(connected) or 'none'}")
        chosen = rover_id or min(connected, key=fleet.evaluations.queued)
        if entry is not None:
            fleet.know(self._daemon.publisher.offer_of(entry.policy_id))
        order = evaluation_order(controller, entry.policy_id if entry else "", episodes, seed)
        now_s = time.monotonic()
        evaluation = fleet.evaluations.ask(chosen, policy, order, now_s)
        fleet.converge(fleet.rovers[chosen], now_s)
        return evaluation

    def _evaluation(self, evaluation_id: str) -> Evaluation:
        evaluation = self._daemon.fleet.evaluations.get(evaluation_id)
        if evaluation is None:
            raise RequestError(404, f"evaluation {evaluation_id}: there is none in this process")
        return evaluation

    def _evaluated_policy(self, policy: str) -> Entry | None:
        if policy == LATEST:
            newest = self._daemon.registry.newest(self._daemon.publisher.run_id)
            if newest is None:
                raise RequestError(409, "evaluate: nothing was exported in this run yet")
            return newest
        return self._entry(policy) if HEX.fullmatch(policy) else None

    def _entry(self, policy_id: str) -> Entry:
        try:
            return self._daemon.registry.get(policy_id)
        except NoSuchPolicyError as error:
            raise RequestError(404, str(error)) from error

    def _policy_row(self, entry: Entry) -> dict[str, Any]:
        wanted, manifest = self._daemon.publisher.wanted, entry.manifest
        return {
            "policy_id": entry.policy_id,
            "counter": entry.counter,
            "update": manifest.update,
            "decisions": manifest.decisions,
            "parent": manifest.parent,
            "run_id": manifest.run_id,
            "size_bytes": entry.size_bytes,
            "is_wanted": wanted is not None and wanted.policy_id == entry.policy_id,
        }


def _asked(command: Callable[[], Any]) -> Any:
    """Call a command whose refusal is the asker's to know."""
    try:
        return command()
    except RoverError as error:
        raise RequestError(409, str(error)) from error


def _text(request: Request, key: str, default: str) -> str:
    value = request.body.get(key, default)
    if not isinstance(value, str) or len(value) > 200:
        raise RequestError(400, f"{key}: a text was expected, not {value!r:.80}")
    return value


def _whole(request: Request, key: str, default: int, low: int, high: int) -> int:
    value = request.body.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise RequestError(400, f"{key}: a whole number from {low} to {high} was expected, not {value!r:.80}")
    return value
