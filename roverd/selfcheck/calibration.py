"""The result of the newest self-check, on disk: for which robot, when, passed or not, and every number."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from protocol.bundle import write_atomic
from protocol.errors import RoverError
from protocol.spec import canonical_hash

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VERSION = 1


class CalibrationError(RoverError):
    """The file of the newest self-check cannot be read; it counts as none."""


@dataclass(frozen=True)
class Calibration:
    """One self-check and what it was of."""

    spec_hash: str
    settings_hash: str
    """Of everything that could turn a sign: the robot's plugin and the actuator with their settings."""
    robot: str
    passed: bool
    at: str
    """Wall time, for people."""
    fault: str = ""
    """The first thing that was wrong, with its remedy."""
    checks: list[dict[str, Any]] = field(default_factory=list)
    version: int = VERSION


def settings_hash(robot: str, actuator: str, tables: Mapping[str, Any]) -> str:
    """Return the sha256 of what a sign may be turned with: both plugins and their tables."""
    own = {name: tables.get(name, {}) for name in (robot, actuator) if name}
    return canonical_hash(json.loads(json.dumps([robot, actuator, own], default=str)))


def load(path: Path) -> Calibration | None:
    """Return what is on disk, None where there is nothing; raises CalibrationError where it cannot be read."""
    try:
        values = json.loads(path.read_bytes())
        return Calibration(**{**values, "checks": list(values["checks"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{path}: {error!r:.200}; run roverctl selfcheck again") from error


def save(path: Path, calibration: Calibration) -> None:
    """Write it whole; raises OSError where the disk refuses."""
    write_atomic(path, json.dumps(asdict(calibration), indent=1).encode())


def refusal(found: Calibration | None, *, spec_hash: str, wanted_settings: str) -> str:
    """Say why a self-check does not let a policy drive this robot, or nothing."""
    if found is None:
        return "it was never checked whether its wheels, odometry and IMU agree"
    if not found.passed:
        return f"its self-check of {found.at} failed: {found.fault}"
    if found.spec_hash != spec_hash:
        return f"its self-check of {found.at} was of another robot spec ({found.spec_hash[:12]}, now {spec_hash[:12]})"
    if found.settings_hash != wanted_settings:
        return f"the settings of its robot plugin or actuator changed since its self-check of {found.at}"
    return ""


def now() -> str:
    """Return the wall time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
