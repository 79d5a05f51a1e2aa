"""Measure how well the tests hold the safety gate: branch coverage, and how many small changes of its code they notice.

The code and its tests are copied to a folder of their own; coverage.py and mutmut are installed into .venv-bench, which
nothing else reads. Each surviving mutant is printed with its diff, and whether docs/safety.md explains it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.bench.figures import ROOT, json_option, total, write

PACKAGES = ("mutmut==3.8.1", "coverage==7.17.3")
TOOLS = ROOT / ".venv-bench" / "mutants"
CODE = ("roverd/control/safety.py", "roverd/control/motion.py")
"""The pure modules that have the last word on an action."""
NEEDED = (
    "roverd/__init__.py",
    "roverd/control/__init__.py",
    "protocol/__init__.py",
    "protocol/errors.py",
    "protocol/step.py",
)
TESTS = ("safe_robot", "test_motion", "test_safety", "test_safety_limits", "test_safety_properties")
EXPLAINED = ROOT / "docs" / "safety.md"
KILLED = {"killed", "timeout", "segfault"}
BAR_PERCENT = 95.0

SETTINGS = """
[tool.pytest.ini_options]
pythonpath = ["."]
addopts = ["--import-mode=importlib", "-p", "no:cacheprovider"]

[tool.mutmut]
source_paths = ["roverd"]
only_mutate = {code}
also_copy = ["protocol"]
pytest_add_cli_args_test_selection = ["tests"]
timeout_multiplier = 10.0
"""
PROFILE = """
from hypothesis import HealthCheck, Phase, settings

quick = {"phases": [Phase.generate], "suppress_health_check": list(HealthCheck), "deadline": None}
settings.register_profile("mutants", derandomize=True, database=None, max_examples=EXAMPLES, **quick)
settings.load_profile("mutants")
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench mutants", description=__doc__)
    json_option(parser)
    parser.add_argument("--examples", type=int, default=30, metavar="N", help="examples of each property test")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    options = parser.parse_args(arguments)
    install()
    with tempfile.TemporaryDirectory(prefix="roverloop-mutants-") as name:
        folder = Path(name)
        lay_out(folder, options.examples)
        covered, branches = coverage(folder)
        began = time.monotonic()
        outcomes = mutate(folder, options.workers)
        seconds = time.monotonic() - began
        survivors = sorted(mutant for mutant, outcome in outcomes.items() if outcome not in KILLED)
        explain(folder, survivors, outcomes)
    percent = 100 * (len(outcomes) - len(survivors)) / len(outcomes)
    print(f"  {dict(Counter(outcomes.values()))}, {branches} branches")
    write(
        options.json,
        [
            total("safety.branch_coverage_percent", [covered], "%"),
            total("safety.mutants_killed_percent", [percent], "%"),
            total("safety.mutants", [len(outcomes)], "1"),
            total("safety.mutants_survived", [len(survivors)], "1"),
            total("safety.mutants_seconds", [seconds], "s"),
        ],
    )
    return 0 if percent >= BAR_PERCENT and covered == 100 else 1


def install():
    """Install the tools into a folder of their own, once; a newer Python or list does it again."""
    stamp = TOOLS / "stamp"
    wanted = f"{sys.version} {' '.join(PACKAGES)}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"bench mutants: installing {', '.join(PACKAGES)} into {TOOLS.relative_to(ROOT)}", flush=True)
    shutil.rmtree(TOOLS, ignore_errors=True)
    TOOLS.mkdir(parents=True)
    (TOOLS.parent / ".gitignore").write_text("*\n")
    words = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--target", str(TOOLS)]
    constraints = ["-c", str(ROOT / "constraints.txt")] if sys.version_info >= (3, 11) else []
    subprocess.run([*words, *constraints, *PACKAGES], check=True)
    stamp.write_text(wanted)


def lay_out(folder, examples):
    """Copy what is measured and what measures it: nothing of the working tree is ever changed."""
    for path in (*CODE, *NEEDED, "tests/__init__.py", *(f"tests/unit/roverd/{name}.py" for name in TESTS)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    (folder / "pyproject.toml").write_text(SETTINGS.format(code=list(CODE)))
    (folder / "tests" / "conftest.py").write_text(PROFILE.replace("EXAMPLES", str(examples)))


def run(folder, *words):
    """Run a module with the tools at hand; returns its output."""
    environment = os.environ | {"PYTHONPATH": str(TOOLS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, text=True, check=False, **kept)
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\nbench mutants: {' '.join(words)} failed with {done.returncode}")
    return done.stdout


def coverage(folder):
    """Return the share of branches that the tests take, in percent, and how many there are."""
    run(folder, "coverage", "run", "--branch", f"--include={','.join(CODE)}", "-m", "pytest", "-q", "tests")
    run(folder, "coverage", "json", "-q", "-o", "coverage.json")
    measured = json.loads((folder / "coverage.json").read_text())
    for path, each in measured["files"].items():
        if each["missing_lines"] or each["missing_branches"]:
            print(f"  {path}: lines {each['missing_lines']} and branches {each['missing_branches']} are not tested")
    totals = measured["totals"]
    if totals["missing_lines"]:
        return min(99.9, 100 * totals["covered_branches"] / totals["num_branches"]), totals["num_branches"]
    return 100 * totals["covered_branches"] / totals["num_branches"], totals["num_branches"]


def mutate(folder, workers):
    """Return what became of each mutant, by name."""
    print(f"  mutants on {workers} workers ...", flush=True)
    run(folder, "mutmut", "run", "--max-children", str(workers))
    lines = run(folder, "mutmut", "results", "--all", "true").splitlines()
    return dict(line.strip().rsplit(": ", 1) for line in lines if line.startswith("    "))


def explain(folder, survivors, outcomes):
    """Print each survivor: no mutant is left out of the count, equivalent ones neither."""
    text = EXPLAINED.read_text() if EXPLAINED.is_file() else ""
    for mutant in survivors:
        diff = run(folder, "mutmut", "show", mutant)
        lines = [line[1:].strip() for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
        said = "explained in docs/safety.md" if lines and all(line in text for line in lines) else "NOT explained"
        print(f"  {outcomes[mutant]}: {mutant}, {said}")
        print("\n".join(f"    {line}" for line in diff.splitlines() if line[:1] in {"+", "-"} and line[:3] != "+++"))


if __name__ == "__main__":
    sys.exit(main())
