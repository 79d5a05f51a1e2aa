"""What a robot's processes may load."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.component

_PROGRAM = """
import importlib, pkgutil, sys
for name in ("protocol", "plugins", "roverd"):
    package = importlib.import_module(name)
    for each in pkgutil.walk_packages(package.__path__, name + ".", onerror=lambda name: None):
        if not each.name.startswith("plugins.encoders") and not each.name.endswith("__main__"):
            importlib.import_module(each.name)
print(*{name.split(".")[0] for name in sys.modules} & {"torch", "trainerd", "tensorboard", "onnxscript"})
"""


def test_no_module_of_the_rover_loads_torch_or_the_trainer() -> None:
    ended = subprocess.run([sys.executable, "-c", _PROGRAM], check=False, timeout=25, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == ""
