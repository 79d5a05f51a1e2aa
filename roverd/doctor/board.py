"""Checks of the computer that drives: clock frequency, heat and throttling, supply voltage. All read below ``root``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from protocol.node.checkup.check import Check, judge, note

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD_GOVERNORS = {"performance", "schedutil", "ondemand", "conservative", "interactive"}
"""Those that raise the frequency under load; powersave of intel_pstate does so too, see ``frequency``."""
LEAST_OF_FASTEST = 0.95
MARGIN_C = 5.0
"""So near to the temperature at which the kernel slows the processor down it is worth a word."""
VOLTAGE_ALARMS = ("in*_alarm", "in*_min_alarm", "in*_lcrit_alarm")


def frequency(root: Path = Path("/"), *, is_needed: bool) -> Iterator[Check]:
    """Judge the governor of every core and the limit that is set on its frequency."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    if not folders:
        yield note("cpu frequency", "the kernel does not tell (a virtual machine?)", "not limited")
        return
    slow, limited, seen = [], [], []
    for folder in folders:
        core, governor = folder.parent.name, text(folder / "scaling_governor")
        now, most, fastest = (
            number(folder / name) for name in ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")
        )
        seen.append(f"{core} {governor} {(now or 0) // 1000} MHz")
        if governor not in GOOD_GOVERNORS and text(folder / "scaling_driver") != "intel_pstate":
            slow.append(f"{core} {governor}")
        if most and fastest and most < LEAST_OF_FASTEST * fastest:
            limited.append(f"{core} at most {most // 1000} of {fastest // 1000} MHz")
    hint = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    measured = ", ".join(slow) or ", ".join(seen[:4]) + (f" and {len(seen) - 4} more" if len(seen) > 4 else "")
    yield judge("cpu governor", measured, "performance", hint, ok=not slow, is_needed=is_needed)
    if limited:
        hint = "something limits it (heat, a power profile): see temperature; cpufreq-info, powerprofilesctl"
        yield judge("cpu frequency", ", ".join(limited), "not limited", hint, ok=False, is_needed=is_needed)


def temperature(root: Path = Path("/"), *, is_needed: bool) -> Iterator[Check]:
    """Judge how near each thermal zone is to where the kernel slows down, and whether it does already."""
    hot, seen = [], []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = text(zone / "type"), number(zone / "temp")
        if value is None:
            continue
        trips = [
            trip
            for kind in zone.glob("trip_point_*_type")
            if text(kind) == "passive" and (trip := number(kind.with_name(kind.name.replace("_type", "_temp"))))
        ]
        celsius, limit = value / 1000, min(trips, default=0) / 1000
        seen.append(f"{name} {celsius:.0f} C" + (f" of {limit:.0f}" if limit > 0 else ""))
        if limit > 0 and celsius > limit - MARGIN_C:
            hot.append(seen[-1])
    throttled = [
        f"{text(each / 'type')} {state} of {number(each / 'max_state')}"
        for each in sorted((root / "sys/class/thermal").glob("cooling_device*"))
        if "cpu" in text(each / "type").lower() and (state := number(each / "cur_state"))
    ]
    hint = "cool it: a fan or a heat sink, more air around the board"
    if seen:
        measured = ", ".join(hot or seen[:6])
        yield judge("temperature", measured, f"{MARGIN_C:g} C below the limit", hint, ok=not hot, is_needed=is_needed)
    else:
        yield note("temperature", "the kernel does not tell", f"{MARGIN_C:g} C below the limit")
    if seen or throttled:
        measured = ", ".join(throttled) or "no core is slowed down"
        yield judge("throttling", measured, "none", hint, ok=not throttled, is_needed=is_needed)


def voltage(root: Path = Path("/")) -> Iterator[Check]:
    """Judge the alarms of supply voltages, where a sensor has any."""
    alarms, count = [], 0
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        for path in sorted(each for pattern in VOLTAGE_ALARMS for each in folder.glob(pattern)):
            count += 1
            if number(path):
                alarms.append(f"{text(folder / 'name')} {path.name}")
    flags = text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    if flags:
        count += 1
        value = int(flags, 16)
        if value & 0x10001:  # bit 0: now, bit 16: since the start (documentation of vcgencmd get_throttled)
            alarms.append(f"under-voltage {'now' if value & 1 else 'since the start'} (get_throttled {flags})")
    if not count:
        return
    hint = "the supply breaks down under load: a stronger supply, a shorter or thicker cable, a charged battery"
    yield judge("supply voltage", ", ".join(alarms) or f"{count} alarms, none raised", "no alarm", hint, ok=not alarms)


def text(path: Path) -> str:
    """Return what a file says, or nothing."""
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """Return the number in a file, or None."""
    try:
        return int(text(path))
    except ValueError:
        return None
