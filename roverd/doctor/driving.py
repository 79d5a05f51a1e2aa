"""Checks of what drives and whether it may: policy, self-check, emergency stop, wheel, mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocol.bundle import unpack_bundle
from protocol.errors import RoverError
from protocol.node.checkup.check import Check, judge, note
from protocol.spec import RobotSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MODES = {
    "idle": "the trainer lets it rest: trainerctl train start",
    "held": "somebody stopped it: roverctl episode start",
    "unarmed": "see selfcheck",
    "e_stop": "see emergency stop",
    "task_disabled": "the task plugin failed too often: roverctl plugins, mend it and restart",
}


def policy(driving: str, *, refusal: str, crashes: int, refusals: int) -> Iterator[Check]:
    """Judge whether one is loaded and whether the wanted one was refused."""
    hint = refusal or "link to a trainer that has one, or start with --policy FILE"
    measured = f"{driving[:12] or 'none'}, {refusals} refused, {crashes} crashes since the start"
    if refusal:
        measured += f"; the wanted one was refused: {refusal}"
    yield judge("policy", measured, "one is loaded and proved", hint, ok=bool(driving) and not refusal)


def policy_file(robot: RobotSpec, path: Path | None) -> Iterator[Check]:
    """Judge whether the policy that drives is whole on disk, for the next start, and was made for this robot."""
    if path is None:
        return
    try:
        differences = robot.differences(RobotSpec.from_map(unpack_bundle(path.read_bytes()).manifest.robot))
    except (OSError, RoverError) as error:
        hint = "it drives on from memory, but a restart needs the trainer: trainerctl policy deploy latest"
        yield judge("policy on disk", error, "whole", hint, ok=False)
        return
    hint = "deploy a policy of this robot's run: trainerctl policy deploy latest"
    measured = "; ".join(differences) or "equal"
    yield judge("policy against robot spec", measured, "equal", hint, ok=not differences)


def selfcheck(found: Mapping[str, Any]) -> Iterator[Check]:
    """Judge whether the signs of wheels, odometry and IMU were proved, and still hold while it drives."""
    passed, at = found["passed"], found["at"]
    result = "never made" if passed is None else f"{'passed' if passed else 'failed'} at {at}"
    needed = "required" if found["required"] else "not required of this robot"
    measured = f"{result}, {needed}" + (f": {found['fault']}" if found["fault"] else "")
    if found["required"] and found["refusal"] and passed:
        measured += f", but {found['refusal']}"
    hint = "give it half a metre of free space all around, then roverctl selfcheck"
    if found["fault"]:
        hint = f"mend that; {hint}"
    ok = bool(found["armed"]) and passed is not False
    yield judge("selfcheck", measured, "passed for this robot", hint, ok=ok, is_needed=bool(found["required"]))
    told = found["contradictions"]
    hint = "stop the robot, look at the sensor and its cable, then roverctl selfcheck"
    measured = "; ".join(told.values()) or "nothing contradicts what is commanded"
    yield judge("motion", measured, "sensors follow what is commanded", hint, ok=not told)


def stop(reason: str) -> Iterator[Check]:
    """Judge the emergency stop."""
    hint = "look at the robot; when it is safe: roverctl clear"
    yield judge("emergency stop", f"latched: {reason}" if reason else "clear", "clear", hint, ok=not reason)


def wheel(found: Mapping[str, Any]) -> Iterator[Check]:
    """Say who has the wheel; a locked one keeps the robot standing."""
    state, owner = str(found.get("state", "free")), str(found.get("owner", ""))
    hint = "its owner says nothing: take it, or roverctl wheel release --force"
    measured = f"{state}: {owner}" if owner else state
    yield judge("wheel", measured, "free, or held by who drives", hint, ok=state != "locked")


def mode(value: str) -> Iterator[Check]:
    """Say what the robot is told to do; one that was told to stand is not ill."""
    if value in MODES:
        yield note("mode", value, "train", MODES[value])
    else:
        yield judge("mode", value, "train, evaluate or collect", "", ok=True)
