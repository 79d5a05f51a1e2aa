"""Checks of what becomes of experience: the signal, checkpoints, exports and the policy that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from protocol.node.checkup.check import Check, judge, note
from protocol.spec import RobotSpec, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def training(state: str, *, causes: Sequence[str], updates: int, decisions_per_s: float) -> Iterator[Check]:
    """Judge whether the learner learns."""
    measured = f"{state}, {updates} updates, {decisions_per_s:.1f} decisions a second" + "".join(
        f"; {cause}" for cause in causes
    )
    hint = "trainerctl status shows the same causes; they name what to do"
    yield judge("training", measured, "nothing is refused", hint, ok=not causes)
    if state != "training":
        yield note("learning", f"it is {state}", "training", "trainerctl train start")


def signal(alarms: Sequence[str], faults: Mapping[str, int], *, steps: int) -> Iterator[Check]:
    """Judge the rewards and ends: a flat or endless signal teaches nothing."""
    hint = "look at reward weights and task at the rover (trainerctl reward lint); ppo.allow_flat_reward permits it"
    measured = "; ".join(alarms) or (f"varies over {steps} steps" if steps else "no step came yet")
    yield judge("reward signal", measured, "varies, and episodes end", hint, ok=not alarms)
    if faults:
        measured = ", ".join(f"{name} {count} times" for name, count in faults.items())
        hint = "these steps were put aside; mend the plugin or sensor that is named (roverctl plugins)"
        yield note("quarantined steps", measured, "none", hint)


class CheckpointFacts(NamedTuple):
    """The newest checkpoint and what came after it."""

    name: str = ""
    update: int = 0
    age_s: float = 0.0
    updates: int = 0
    interval: int = 10
    error: str = ""
    decisions: int = 0


def checkpoint(facts: CheckpointFacts) -> Iterator[Check]:
    """Judge how much a crash would cost."""
    expected = f"at most {facts.interval} updates old"
    hint = facts.error or "trainerctl checkpoint save says why there is none; see the disk of checkpoint_dir"
    behind = facts.updates - facts.update
    if not facts.name:
        measured = f"none yet, {facts.updates} updates"
    else:
        measured = f"{facts.name}, {behind} updates and {facts.age_s:.0f} s ago"
    if facts.error:
        measured += f"; the last one failed: {facts.error}"
    ok = not facts.error and behind <= facts.interval + 1  # one may be under way
    yield judge("checkpoint", measured, expected, hint, ok=ok)


def export(*, exports: int, failed: int, last_error: str) -> Iterator[Check]:
    """Judge whether updates become policies."""
    measured = f"{exports} exported, {failed} failed" + (f"; the last one: {last_error}" if last_error else "")
    hint = "training goes on and the policy before drives on; free the disk, or see the packages of trainer"
    yield judge("export", measured, "the last one worked", hint, ok=not last_error)


def converter(version: str) -> Iterator[Check]:
    """Say whether policies can be converted for the NPU of an RK3588."""
    hint = "the rover runs the ONNX on its CPU, which is enough for the demo; for the NPU install rknn-toolkit2"
    measured = f"rknn-toolkit2 {version}" if version else "no rknn-toolkit2"
    yield judge("converter", measured, "one, where a rover has an NPU", hint, ok=bool(version), is_needed=False)


def spec(run: Mapping[str, Any] | None, policy: Mapping[str, Any] | None) -> Iterator[Check]:
    """Judge whether the wanted policy is for the robot of the run."""
    if run is None or policy is None:
        return
    try:
        differences = RobotSpec.from_map(run).differences(RobotSpec.from_map(policy))
    except SpecError as error:
        differences = [str(error)]
    hint = "deploy a policy of this run: trainerctl policy deploy latest"
    measured = "; ".join(differences) or "equal"
    yield judge("policy against robot spec", measured, "equal", hint, ok=not differences)


def plugins(rows: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """Judge the plugins."""
    bad = [
        f"{row['group']}.{row['name']}: {row['last_error']}" for row in rows if row["state"] in {"failed", "disabled"}
    ]
    hint = "see trainerctl plugins; repair it or leave it out"
    yield judge("plugins", "; ".join(bad) or "all in order", "none failed or disabled", hint, ok=not bad)


def store(status: Mapping[str, Any]) -> Iterator[Check]:
    """Judge whether records become safe; while they do not, nothing is acknowledged."""
    ok = status["state"] == "ok"
    measured = str(status["state"]) if ok else f"{status['state']}: {status['reason']}"
    measured += (
        f", {status['records']} records since the start, {status['waiting']} wait, sync {status['sync_ms_last']:.1f} ms"
    )
    hint = "free the disk of state_dir (store.quota_gb deletes old episodes by itself); rovers keep records meanwhile"
    yield judge("store", measured, "ok", hint, ok=ok)
