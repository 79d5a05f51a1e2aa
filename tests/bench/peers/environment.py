"""The peers' packages, in a virtual environment that nothing else uses."""

import os
import socket
import subprocess
import sys

from tests.bench.figures import ROOT

FOLDER = ROOT / ".bench" / "peers"
PYTHON = FOLDER / "bin" / "python"
REQUIREMENTS = ROOT / "tests" / "bench" / "peers" / "requirements.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OF_TORCH = ("torch", "torchvision")
"""Packages whose build must fit the torch that ROVERLOOP_TORCH names."""


def install():
    """Return the environment's Python; it is made once, and again after a change of Python or of the requirements."""
    stamp = FOLDER / "stamp"
    lines = requirements(REQUIREMENTS.read_text(), os.environ.get("ROVERLOOP_TORCH"))
    wanted = "\n".join([sys.version, *lines])
    if stamp.is_file() and stamp.read_text() == wanted:
        return PYTHON
    print(f"bench learner: installing the peers into {FOLDER.relative_to(ROOT)}", flush=True)
    FOLDER.parent.mkdir(exist_ok=True)
    (FOLDER.parent / ".gitignore").write_text("*\n")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    words = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *cpu_index(), *lines]
    subprocess.run(words, check=True)
    stamp.write_text(wanted)
    return PYTHON


def requirements(text, torch=None):
    """Return the requirements; ``torch`` replaces the build of torch, whose companions then follow by themselves."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if torch is None:
        return lines
    return [torch, *(line for line in lines if line.partition("=")[0] not in OF_TORCH)]


def cpu_index():
    """Name the index of CPU builds where it can be reached; elsewhere pip's own settings decide."""
    if "ROVERLOOP_TORCH" in os.environ:
        return []
    try:
        socket.getaddrinfo("download.pytorch.org", 443)
    except OSError:
        return []
    return ["--extra-index-url", CPU_INDEX]
