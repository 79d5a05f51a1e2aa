"""The audit's check of who decided: each flag of the safety gate explains what it may, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.step import Intervention as Flag
from protocol.step import Observation, Step
from tests.unit.episodes.making import ROBOT
from trainerd.episodes.audit import Thresholds
from trainerd.episodes.checks import motion
from trainerd.episodes.checks.entry import Entry
from trainerd.episodes.checks.findings import Findings

CHANGED = [Flag.LIMITED, Flag.FORWARD_STOP, Flag.SLOWED, Flag.RAMPED, Flag.STALLED]
REASONS = [
    Flag.MISSED,
    Flag.STALE,
    Flag.NON_FINITE,
    Flag.E_STOP,
    Flag.FROZEN,
    Flag.TILTED,
    Flag.WHEEL_LOCKED,
]
NOTES = [Flag.LATE, Flag.FAILOVER, Flag.HUMAN, Flag.OBSERVATION_REPEATED, Flag.ACTUATOR_FAILED, Flag.TOOK_OVER]
"""Flags that say what happened and explain no other action."""


def is_offence(source: str, flags: int, applied: float = 0.0) -> bool:
    """Return whether a step is one whose proposal was 0.5 and of which something else was applied."""
    empty = np.empty(0, np.float32)
    step = Step(
        rover_id="r",
        boot_id="b",
        seq=0,
        episode_id=0,
        episode_step=0,
        decision_id=0,
        tick_in_decision=0,
        observation=Observation(np.zeros(1, np.float32), empty, np.zeros(1, np.float32)),
        action=np.full(1, applied, np.float32),
        source=source,
        reward=0.0,
        policy_action=np.full(1, 0.5, np.float32),
        human_action=np.full(1, 0.5, np.float32),
        interventions=int(flags),
    )
    findings = Findings()
    motion.check_sources([Entry(step)], ROBOT, Thresholds(), findings)
    assert findings.tallies["applied.source"].checked
    return bool(findings.offences)


def test_every_flag_is_one_of_these() -> None:
    assert sorted([*CHANGED, *REASONS, *NOTES]) == sorted(Flag)


@pytest.mark.parametrize("flag", CHANGED)
@pytest.mark.parametrize("source", ["gate", "human", "scripted"])
def test_a_flag_of_a_change_explains_another_action(flag: Flag, source: str) -> None:
    assert not is_offence(source, flag)


@pytest.mark.parametrize("flag", REASONS)
def test_a_flag_that_forbids_motion_explains_the_safe_action(flag: Flag) -> None:
    assert not is_offence("fallback", flag)


@pytest.mark.parametrize("flag", [*REASONS, *NOTES])
@pytest.mark.parametrize("source", ["gate", "policy", "human", "scripted"])
def test_other_flags_explain_no_changed_action(flag: Flag, source: str) -> None:
    assert is_offence(source, flag)


@pytest.mark.parametrize("flag", [*CHANGED, *NOTES])
def test_other_flags_explain_no_safe_action(flag: Flag) -> None:
    assert is_offence("fallback", flag)


@pytest.mark.parametrize("flag", NOTES)
def test_a_note_beside_what_was_wanted_is_no_offence(flag: Flag) -> None:
    assert not is_offence("policy", flag, applied=0.5)
