"""Checks of the robot's side: each says what it measured, what it expected, and what to do."""

from __future__ import annotations

import os
import platform
import shutil
from typing import TYPE_CHECKING, Any

from protocol.images import jpeg_library
from protocol.keys import fingerprint

if TYPE_CHECKING:
    from roverd.assemble import Parts

LEAST_FREE_BYTES = 1 << 30
SLOW_LINK_MS = 50.0
MAX_SKEW_S = 2.0


def run(parts: Parts) -> list[dict[str, Any]]:
    """Return the checks as {check, ok, measured, expected, hint}."""
    return [
        _keys(parts),
        _link(parts),
        _round_trip(parts),
        _clock(parts),
        _policy(parts),
        _spec(parts),
        _spool(parts),
        _disk(parts),
        _npu(),
        _images(),
        _plugins(parts),
    ]


def _check(check: str, measured: object, expected: str, hint: str, *, ok: bool) -> dict[str, Any]:
    return {"check": check, "ok": ok, "measured": str(measured), "expected": expected, "hint": "" if ok else hint}


def _keys(parts: Parts) -> dict[str, Any]:
    if not parts.settings.link.curve:
        return _check("keys", "link.curve is off", "off only towards this machine's own trainer", "", ok=True)
    trainer = parts.uplink.trainer_public
    measured = f"rover {fingerprint(parts.keys.public)}, trainer {fingerprint(trainer) if trainer else 'none'}"
    return _check("keys", measured, "paired with a trainer", "roverctl pair HOST", ok=bool(trainer))


def _link(parts: Parts) -> dict[str, Any]:
    address = parts.uplink.address
    measured = f"{parts.uplink.state} {parts.uplink.refusal or parts.uplink.degraded}".strip()
    hint = (
        parts.uplink.refusal
        or parts.uplink.degraded
        or f"is trainerd running at {address}? does a firewall let it through?"
    )
    return _check(
        "link", measured, f"linked to {address}", hint, ok=parts.uplink.is_linked and not parts.uplink.degraded
    )


def _round_trip(parts: Parts) -> dict[str, Any]:
    value = parts.uplink.round_trip_ms
    ok = value < SLOW_LINK_MS
    return _check(
        "link round trip", f"{value:.2f} ms", f"below {SLOW_LINK_MS:g} ms", "the network is slow or down", ok=ok
    )


def _clock(parts: Parts) -> dict[str, Any]:
    skew = parts.uplink.clock_skew_s
    ok = abs(skew) < MAX_SKEW_S
    hint = "people read wall clocks: run an NTP client on both machines"
    return _check("clock skew", f"{skew:+.3f} s", f"within {MAX_SKEW_S:g} s", hint, ok=ok)


def _policy(parts: Parts) -> dict[str, Any]:
    policies = parts.policies
    refused = policies.refusal(policies.target) if policies.target else ""
    hint = refused or "link to a trainer that has one, or start with --policy FILE"
    ok = policies.driving is not None and not refused
    return _check("policy", policies.slot_name(policies.active)[:12] or "none", "one is loaded and proved", hint, ok=ok)


def _spec(parts: Parts) -> dict[str, Any]:
    refusal = parts.uplink.refusal
    ok = "spec" not in refusal and "differs" not in refusal
    return _check("robot spec", parts.robot.spec.hash[:12], "the trainer's run has the same", refusal, ok=ok)


def _spool(parts: Parts) -> dict[str, Any]:
    report, causes = parts.spool.report(), parts.spool.causes()
    measured = (
        f"{report['state']}: {report['unacknowledged']} records wait, {report['disk_bytes'] >> 20} MiB on disk, "
        f"{report['dropped']} dropped, {report['damaged']} damaged, {report['exposed_ms_max']:.0f} ms until durable"
    )
    hint = "; ".join(causes) + ": free space or mend the disk, and link to the trainer"
    return _check("spool", measured, "all records on disk until they are acknowledged", hint, ok=not causes)


def _disk(parts: Parts) -> dict[str, Any]:
    free = shutil.disk_usage(parts.settings.state_dir).free
    hint = "free space, or set state_dir to another disk"
    return _check("disk", f"{free >> 20} MiB free", "at least 1024 MiB", hint, ok=free >= LEAST_FREE_BYTES)


def _npu() -> dict[str, Any]:
    driver = next((p for p in ("/sys/kernel/debug/rknpu/version", "/dev/accel/accel0") if os.path.exists(p)), "")  # noqa: PTH110
    is_board = platform.machine() == "aarch64"
    hint = "no NPU driver is visible: the CPU runs the policy"
    return _check("npu driver", driver or "none", "one on an RK3588 board", hint, ok=bool(driver) or not is_board)


def _images(  # the slow path is legal, so this only informs
) -> dict[str, Any]:
    return _check("jpeg library", jpeg_library().name, "PyTurboJPEG or simplejpeg", "", ok=True)


def _plugins(parts: Parts) -> dict[str, Any]:
    listing = parts.plugins.listing()
    bad = [f"{row['group']}.{row['name']}: {row['last_error']}" for row in listing if row["state"] != "ready"]
    return _check(
        "plugins", "; ".join(bad) or "all in order", "none failed or disabled", "roverctl plugins", ok=not bad
    )
