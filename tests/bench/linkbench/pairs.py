"""Run one receiver and one sender, each on a core of its own, and return what the sender measured."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.figures import ROOT
from tests.bench.linkbench.clock import MARK
from tests.bench.linkbench.frames import HEIGHT, WIDTH

PEERS = ROOT / ".venv-bench"
PACKAGES = ("lz4==4.4.5", "grpcio==1.85.1", "protobuf==7.36.2")
"""What the peers need; it stays out of the environment that everything else uses."""


def install():
    """Install the peers' packages into a folder of their own, once; a newer Python or list does it again."""
    stamp = PEERS / "stamp"
    wanted = f"{sys.version} {' '.join(PACKAGES)}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"bench link: installing {', '.join(PACKAGES)} into {PEERS.name}", flush=True)
    PEERS.mkdir(exist_ok=True)
    (PEERS / ".gitignore").write_text("*\n")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    subprocess.run([*words, "--target", str(PEERS), *PACKAGES], check=True)
    stamp.write_text(wanted)


def certificate(folder):
    """Return paths of a key and a certificate for localhost, or None where there is no openssl."""
    paths = [str(folder / "key.pem"), str(folder / "cert.pem")]
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", paths[0], "-out", paths[1]]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return paths


def cores():
    """Return the cores of receiver and sender: the last two that may be used, or none to be pinned to."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[-1], allowed[-2]) if len(allowed) > 1 else (None, None)


def run(receiver, sender, *, peers=False, scratch, inspect=None, **told):
    """Run a pair of modules once; ``told`` goes to both, and to the sender also what the receiver said.

    ``inspect`` is called with the folder that both worked in, once they ended; its answer is part of the result.
    """
    receiver_core, sender_core = cores()
    with tempfile.TemporaryDirectory(prefix="roverloop-link-", dir=scratch) as folder:
        told = {"folder": folder, "counter": f"{folder}/counter", **told}
        environment = dict(os.environ)
        if peers:
            environment["PYTHONPATH"] = str(PEERS)
        process = start(receiver, {**told, "core": receiver_core}, environment)
        try:
            wanted = {**told, **hear(process), "pid": process.pid, "core": sender_core}
            words = [sys.executable, "-m", *sender, json.dumps(wanted)]
            answer = subprocess.run(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=True)
        finally:
            process.stdin.close()
        receiver_says = hear(process)
        process.wait(20)
        found = {} if inspect is None else {"found": inspect(Path(folder))}
    return {**told_by(answer.stdout), "receiver": receiver_says, **found}


def alone(module, *, scratch, **told):
    """Run one module on the receiver's core and return what it said."""
    with tempfile.TemporaryDirectory(prefix="roverloop-link-", dir=scratch) as folder:
        words = [sys.executable, "-m", *module, json.dumps({"folder": folder, "core": cores()[0], **told})]
        answer = subprocess.run(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    return told_by(answer.stdout)


def told_by(output):
    """Return what a process that ended said last."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    return json.loads(lines[-1].removeprefix(MARK))


def hear(process):
    """Return what a process says with ``clock.say``; what it logs goes by."""
    for line in process.stdout:
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise SystemExit(f"bench link: {' '.join(process.args[2:4])} ended without an answer")


def start(module, told, environment):
    """Start a receiver; its first line of output says where it listens."""
    words = [sys.executable, "-m", *module, json.dumps(told)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)


def shape():
    return [HEIGHT, WIDTH]
