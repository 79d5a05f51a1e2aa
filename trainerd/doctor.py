"""Checks of the trainer's side: each says what it measured, what it expected, and what to do."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.spec import RobotSpec, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from trainerd.assemble import Daemon

Check = dict[str, Any]

LEAST_FREE_BYTES = 1 << 30
SLOW_LINK_MS = 50.0
CLOCK_SKEW_S = 1.0
SOCKET_MODE = 0o660


def run(daemon: Daemon) -> list[Check]:
    """Return the checks of a running trainerd as {check, ok, measured, expected, hint}; loop thread."""
    return examine(facts_of(daemon))


def facts_of(daemon: Daemon) -> dict[str, Any]:
    """Return what ``examine`` looks at; reads of the link thread's rovers are copies that may be a moment old."""
    settings, specs, wanted = daemon.settings, daemon.run_file.run.specs, daemon.publisher.wanted
    rovers = [
        {
            "rover_id": rover.rover_id,
            "connected": rover.connected,
            "round_trip_ms": rover.status.get("round_trip_ms"),
            "clock_skew_s": rover.status.get("clock_skew_s"),
            "refused": dict(rover.refused),
        }
        for rover in list(daemon.fleet.rovers.values())
    ]
    return {
        "device": settings.device,
        "host": settings.host,
        "port": daemon.link.port,
        "is_listening": True,
        "state_dir": settings.state_dir,
        "checkpoint_dir": settings.checkpoint_dir,
        "tensorboard_dir": settings.tensorboard_dir,
        "control_socket": settings.socket_path,
        "rovers": rovers,
        "last_refusal": daemon.fleet.last_refusal,
        "plugins": daemon.plugins.listing(),
        "robot": specs[0].to_map() if specs else None,
        "policy_robot": wanted.manifest.robot if wanted else None,
    }


def examine(context: Mapping[str, Any]) -> list[Check]:
    """Return the checks as {check, ok, measured, expected, hint}; ``hint`` is empty where all is well.

    A key that is not in ``context`` leaves its checks out, so that the same list serves a daemon that is not running.

    Args:
        context: ``device`` (the setting), ``host``, ``port``, ``is_listening`` (this daemon has the port),
            ``state_dir``, ``checkpoint_dir``, ``tensorboard_dir``, ``control_socket`` (paths),
            ``rovers`` (list of {rover_id, connected, round_trip_ms, clock_skew_s, refused}; the last three optional),
            ``last_refusal`` (why a rover was not admitted, or empty),
            ``plugins`` (list of {group, name, state, last_error}),
            ``robot`` (the run's RobotSpec as a map) with ``policy_robot`` (that of the wanted policy).

    """
    table: list[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Iterator[Check]]]] = [
        (("device",), _device),
        (("host", "port"), _port),
        (("state_dir",), _folders),
        (("control_socket",), _control_socket),
        (("rovers",), _rovers),
        (("plugins",), _plugins),
        (("robot", "policy_robot"), _spec),
    ]
    possible = (check for keys, check in table if all(context.get(key) is not None for key in keys))
    return [each for check in possible for each in check(context)]


def _check(check: str, measured: object, expected: str, hint: str, *, ok: bool) -> Check:
    return {"check": check, "ok": ok, "measured": str(measured), "expected": expected, "hint": "" if ok else hint}


def _device(context: Mapping[str, Any]) -> Iterator[Check]:
    import torch  # noqa: PLC0415 - a second that the other checks need not pay

    wanted, has_gpu = str(context["device"]), torch.cuda.is_available()
    found = torch.cuda.get_device_name(0) if has_gpu else f"CPU, {torch.get_num_threads()} threads"
    hint = f"torch {torch.__version__} sees no GPU: check the driver, or install a torch for CUDA or ROCm"
    yield _check("torch device", found, f"device {wanted}", hint, ok=has_gpu or not wanted.startswith("cuda"))
    is_cpu_build = torch.version.cuda is None and torch.version.hip is None
    has_driver = Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
    build = torch.version.cuda or torch.version.hip or "CPU only"
    hint = "this machine has a GPU that this torch was not built for; install with ROVERLOOP_TORCH"
    yield _check("torch build", build, "one for the machine's GPU", hint, ok=not (is_cpu_build and has_driver))


def _port(context: Mapping[str, Any]) -> Iterator[Check]:
    host, port = str(context["host"]), int(context["port"])
    if context.get("is_listening"):
        yield _check("port", f"{host}:{port} listening", "listening", "", ok=True)
    else:
        problem = _bind_problem(host, port)
        hint = (
            f"another program has it, or the address is not this machine's: ss -ltnp 'sport = :{port}', or use --port"
        )
        yield _check("port", problem or f"{host}:{port} is free", "free or listening", hint, ok=not problem)
    is_local = host in {"127.0.0.1", "localhost", "::1"}
    reach = "this machine only" if is_local else "the network"
    hint = "rovers on other machines cannot come in: set host = 0.0.0.0 and open the port in the firewall"
    yield _check("reach", reach, "wherever the rovers are", hint, ok=not is_local or _are_all_here(context))


def _are_all_here(context: Mapping[str, Any]) -> bool:
    """Return False only where it is known that no rover has come although one should have."""
    rovers = context.get("rovers")
    return rovers is None or bool(rovers)


def _bind_problem(host: str, port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"{host}:{port}: {(error.strerror or str(error)).lower()}"
    return ""


def _folders(context: Mapping[str, Any]) -> Iterator[Check]:
    for key in ("state_dir", "checkpoint_dir", "tensorboard_dir"):
        if context.get(key) is None:
            continue
        folder = Path(context[key])
        place = _existing(folder)
        is_writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
        measured = "writable" if is_writable else f"{place} is not a folder that this user may write"
        hint = f"make it writable for uid {os.geteuid()}, or set {key} to another folder"
        yield _check(key.replace("_", " "), measured, f"{folder} can be written", hint, ok=is_writable)
        if is_writable:
            free = shutil.disk_usage(place).free
            expected = f"at least {LEAST_FREE_BYTES >> 20} MiB"
            hint = f"free space, or set {key} to another disk"
            yield _check(f"disk of {key}", f"{free >> 20} MiB free", expected, hint, ok=free >= LEAST_FREE_BYTES)


def _existing(path: Path) -> Path:
    """Return the path, or the nearest above it that is there."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _control_socket(context: Mapping[str, Any]) -> Iterator[Check]:
    path = Path(context["control_socket"])
    try:
        status = path.lstat()
    except OSError as error:
        hint = "trainerd is not running, or was given another --control-socket"
        yield _check("control socket", f"{path}: {(error.strerror or '').lower()}", "a socket", hint, ok=False)
        return
    mode = stat.S_IMODE(status.st_mode)
    ok = stat.S_ISSOCK(status.st_mode) and mode & 0o007 == 0
    hint = "others may command this daemon: chmod 660 it, and look at what changed it"
    yield _check("control socket", f"mode {mode:04o}", f"a socket of mode {SOCKET_MODE:04o}", hint, ok=ok)


def _rovers(context: Mapping[str, Any]) -> Iterator[Check]:
    rovers, refusal = context["rovers"], str(context.get("last_refusal") or "")
    here = [str(each["rover_id"]) for each in rovers if each.get("connected")]
    hint = refusal or f"start roverd with --trainer tcp://THIS-MACHINE:{context.get('port', 'PORT')}"
    yield _check("rovers", ", ".join(here) or "none connected", "at least one connected", hint, ok=bool(here))
    if refusal:
        hint = "the rover is not of this run: correct it, or begin a run of its own in another state_dir"
        yield _check("refused rovers", refusal, "none", hint, ok=False)
    for each in rovers:
        if each.get("connected"):
            yield from _rover(each)


def _rover(rover: Mapping[str, Any]) -> Iterator[Check]:
    name = rover["rover_id"]
    round_trip_ms, skew_s = rover.get("round_trip_ms"), rover.get("clock_skew_s")
    if round_trip_ms is not None:
        expected, ok = f"below {SLOW_LINK_MS:g} ms", round_trip_ms < SLOW_LINK_MS
        yield _check(f"link to {name}", f"{round_trip_ms:.2f} ms round trip", expected, "the network is slow", ok=ok)
    if skew_s is not None:
        expected, ok = f"within {CLOCK_SKEW_S:g} s", abs(skew_s) <= CLOCK_SKEW_S
        hint = "wall clocks differ (only people read them): timedatectl set-ntp true on both machines"
        yield _check(f"clock of {name}", f"{skew_s:+.3f} s", expected, hint, ok=ok)
    if rover.get("refused"):
        reasons = "; ".join(f"{str(policy)[:12]}: {reason}" for policy, reason in dict(rover["refused"]).items())
        hint = "the rover keeps the policy it had; see trainerctl rover list"
        yield _check(f"policies at {name}", reasons, "none refused", hint, ok=False)


def _plugins(context: Mapping[str, Any]) -> Iterator[Check]:
    rows = (row for row in context["plugins"] if row["state"] in {"failed", "disabled"})
    bad = [f"{row['group']}.{row['name']}: {row['last_error']}" for row in rows]
    hint = "see trainerctl plugins; repair it or leave it out"
    yield _check("plugins", "; ".join(bad) or "all in order", "none failed or disabled", hint, ok=not bad)


def _spec(context: Mapping[str, Any]) -> Iterator[Check]:
    try:
        differences = RobotSpec.from_map(context["robot"]).differences(RobotSpec.from_map(context["policy_robot"]))
    except SpecError as error:
        differences = [str(error)]
    measured = "; ".join(differences) or "equal"
    hint = "deploy a policy of this run: trainerctl policy deploy latest"
    yield _check("policy against robot spec", measured, "equal", hint, ok=not differences)
