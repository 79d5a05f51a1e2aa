"""Plugins as strangers ship them: distributions in a folder on the path of the daemons."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.daemon.daemons import Site

ROOT = Path(__file__).resolve().parents[2]


def install_plugin(site: Site, group: str, name: str, source: str) -> None:
    """Put a module and its entry point where the site's later daemons find them."""
    target = _target(site)
    module = f"{name}_plugin"
    (target / f"{module}.py").write_text(source)
    facts = target / f"{module}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[roverloop.{group}]\n{name} = {module}\n")


def pip_install(site: Site, package: Path) -> None:
    """Install a package as its user would, without a network; setuptools builds in a copy."""
    target = _target(site)
    copy = site.folder / package.name
    shutil.copytree(package, copy)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    words = [*pip, "--no-build-isolation", "--no-deps", "--target", str(target), str(copy)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def _target(site: Site) -> Path:
    target = site.folder / "installed"
    target.mkdir(exist_ok=True)
    site.env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
    return target
