"""Fuzz every decoder under atheris, one after the other, each in a process of its own with a limit of memory.

Environment, corpora and findings lie in .venv/fuzz and build/fuzz. A target ends at its first finding, whose input is
kept: ``python -m tests.fuzz.run TARGET FILE`` in that environment runs it again.
"""

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from tests.bench.figures import ROOT, Figure, json_option, write
from tests.fuzz.targets import TARGETS

ENVIRONMENT = ROOT / ".venv" / "fuzz"
WORK = ROOT / "build" / "fuzz"
ATHERIS = "atheris==3.0.0"
RSS_LIMIT_MB = 2048
INPUT_TIMEOUT_S = 10
FINDINGS = ("crash-", "oom-", "timeout-", "leak-")
EXECUTIONS = re.compile(rb"stat::number_of_executed_units:\s+(\d+)")
PROGRESS = re.compile(rb"^#(\d+)\s", re.MULTILINE)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench fuzz", description=__doc__)
    json_option(parser)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="time for each target")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    options = parser.parse_args(arguments)
    python = environment()
    figures, findings = [], []
    for name in options.target or TARGETS:
        executions, found, minutes = fuzz(python, name, options.minutes)
        findings += found
        for what, value, unit in (
            ("executions", executions, "1"),
            ("findings", len(found), "1"),
            ("minutes", minutes, "min"),
        ):
            figures.append(Figure(f"fuzz.{name}.{what}", value, unit, 1, value, value))
    write(options.json, figures)
    for path in findings:
        print(f"finding: {path.relative_to(ROOT)}")
    return 1 if findings else 0


def environment():
    """Make an environment with atheris that otherwise sees what .venv has; return its Python."""
    python = ENVIRONMENT / "bin" / "python"
    if python.exists() and subprocess.run([python, "-c", "import atheris"], check=False).returncode == 0:
        return python
    print(f"fuzz: installing {ATHERIS} into {ENVIRONMENT.relative_to(ROOT)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    seen = sysconfig.get_path("purelib")
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (Path(own) / "roverloop.pth").write_text(f"import site; site.addsitedir({seen!r})\n")
    words = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--quiet", ATHERIS]
    if subprocess.run(words, check=False).returncode:
        sys.exit(f"fuzz: {ATHERIS} could not be installed; see whether it has a wheel for this Python and machine")
    return python


def fuzz(python, name, minutes):
    """Return (executions, findings, minutes) of one target."""
    target, folder = TARGETS[name], WORK / name
    corpus, found = folder / "corpus", folder / "findings"
    for each in (corpus, found):
        each.mkdir(parents=True, exist_ok=True)
    seeds = folder / "seeds"
    shutil.rmtree(seeds, ignore_errors=True)
    seeds.mkdir()
    for index, content in enumerate(target.seeds()):
        (seeds / f"{index:02d}").write_bytes(content)
    began, executions, new = time.monotonic(), 0, []
    while not new and (left_s := 60 * minutes - (time.monotonic() - began)) >= 1:
        before = set(found.iterdir())
        words = [
            python, "-m", "tests.fuzz.run", name, f"-max_total_time={int(left_s)}",
            f"-rss_limit_mb={RSS_LIMIT_MB}", f"-timeout={INPUT_TIMEOUT_S}", f"-max_len={target.max_bytes}",
            f"-artifact_prefix={found}/", "-print_final_stats=1", "-verbosity=1", corpus, seeds,
        ]  # fmt: skip
        log = folder / "log"
        with log.open("wb") as output:
            status = subprocess.run(words, check=False, cwd=ROOT, stdout=output, stderr=output).returncode
        content = log.read_bytes()
        new = sorted(each for each in set(found.iterdir()) - before if each.name.startswith(FINDINGS))
        counts = EXECUTIONS.findall(content) or PROGRESS.findall(content)
        executions += int(counts[-1]) if counts else 0
        if not counts or (status and not new):
            tail = content[-2000:].decode(errors="replace")
            sys.exit(f"fuzz: {name} ended with {status}; {log.relative_to(ROOT)}:\n{tail}")
        new = [each for each in new if not is_of_the_fuzzer(python, name, each)]
    spent = (time.monotonic() - began) / 60
    print(f"  {name}: {executions} executions in {spent:.1f} min, {len(new)} findings", flush=True)
    return executions, new, spent


def is_of_the_fuzzer(python, name, path):
    """Tell whether memory ran out though the input alone needs little, and remove it then.

    atheris 3.0.0's instrumentation keeps operands of comparisons alive: targets that handle large packets grow by as
    much with each execution, and do not without it. So they are started anew.
    """
    if not path.name.startswith("oom-"):
        return False
    words = [python, "-m", "tests.fuzz.run", name, f"-rss_limit_mb={RSS_LIMIT_MB // 4}", path]
    if subprocess.run(words, check=False, cwd=ROOT, capture_output=True).returncode:
        return False
    path.unlink()
    return True


if __name__ == "__main__":
    sys.exit(main())
