"""``./dev demo``: run both daemons until the budget is learned from, evaluate, report."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.node import log as logs
from protocol.node.require import require
from trainerd.demo.daemons import Pair, assignments
from trainerd.demo.report import Evidence, report, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainerd.demo.screen import Screen

POLL_S = 0.5
EVALUATION_SEED = 1_000_000
"""First arena of the report; arenas of learning and of any choice are below it."""


class EvaluationFailedError(RoverError):
    """An evaluation ended without a result."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; give the exit status: 0 done, 1 a daemon died or an evaluation failed, 130 interrupted."""
    options = parse(arguments)
    evidence = Evidence(options.seed, options.task, began_s=time.monotonic())
    status = 0
    try:
        require("onnxruntime", "trainer")
        run(options, evidence)
    except KeyboardInterrupt:
        print("\ninterrupted; both daemons are stopped", file=sys.stderr)
        status = 130
    except RoverError as error:
        print(f"demo: {error}", file=sys.stderr)
        status = 1
    write(options, report(evidence, time.monotonic()))
    return status


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="./dev demo", description="a simulated rover learns to reach goals")
    parser.add_argument("--headless", action="store_true", help="no live panel")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--decisions", type=int, metavar="N", help="budget of decisions (default: the demo profile's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of arenas, exploration and weights")
    parser.add_argument("--task", default="goal", help="goal, or drive: fast and far from obstacles, without a goal")
    parser.add_argument("--blind", action="store_true", help="learn without cameras, for comparison")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the run (default: ./demo-runs/TIME)")
    parser.add_argument("--eval-episodes", type=int, default=400, metavar="N", help="arenas to report on; 0: none")
    parser.add_argument("--no-reactive", action="store_true", help="leave out the hand-written controller")
    parser.add_argument("--no-random", action="store_true", help="leave out the random policy")
    for daemon in ("trainerd", "roverd"):
        words = f"a further setting of {daemon}"
        parser.add_argument(f"--set-{daemon}", action="append", default=[], metavar="NAME=VALUE", help=words)
    options = parser.parse_args(arguments)
    if options.output is None:
        options.output = Path("demo-runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
    options.output = options.output.absolute()
    return options


def run(options: argparse.Namespace, evidence: Evidence) -> None:
    """Learn, then evaluate; both daemons are stopped when this returns or raises."""
    print(f"output   {options.output}", file=sys.stderr)
    tensorboard = os.path.relpath(Path(sys.executable).parent / "tensorboard")
    print(f"watch    {tensorboard} --logdir {options.output / 'runs'}", file=sys.stderr, flush=True)
    pair = Pair(options.output, trainerd=trainer_words(options), roverd=rover_words(options))
    with pair, screen(options) as shown:
        learn(pair, evidence, shown)
        for policy in evaluated(options):
            evidence.evaluations[policy] = evaluate(pair, evidence, shown, policy, options.eval_episodes)
        evidence.see(pair.trainerd.get("/status"), pair.roverd.get("/status"), time.monotonic())


def trainer_words(options: argparse.Namespace) -> list[str]:
    """Return what trainerd is told beyond the demo's profile."""
    settings: dict[str, Any] = {"seed": options.seed}
    if options.decisions is not None:
        settings["train.decisions"] = options.decisions
    if options.blind:
        settings["network.encoder"] = "blind"
    return [*assignments(settings), *(word for each in options.set_trainerd for word in ("--set", each))]


def rover_words(options: argparse.Namespace) -> list[str]:
    """Return what roverd is told beyond the demo's profile."""
    settings = {"seed": options.seed, "task": options.task}
    return [*assignments(settings), *(word for each in options.set_roverd for word in ("--set", each))]


def evaluated(options: argparse.Namespace) -> list[str]:
    """Return which policies are evaluated, in this order."""
    if options.eval_episodes == 0:
        return []
    wanted = {"latest": True, "random": not options.no_random, "reactive": not options.no_reactive}
    if options.task != "goal":
        wanted["reactive"] = False  # it follows gaps towards a goal
    return [policy for policy, is_wanted in wanted.items() if is_wanted]


def learn(pair: Pair, evidence: Evidence, shown: Screen) -> None:
    """Watch both daemons until the budget is learned from."""
    while not evidence.is_finished:
        evidence.see(pair.trainerd.get("/status"), pair.roverd.get("/status"), time.monotonic())
        shown.show(evidence, time.monotonic())
        time.sleep(POLL_S)


def evaluate(pair: Pair, evidence: Evidence, shown: Screen, policy: str, episodes: int) -> dict[str, Any]:
    """Have a policy driven through unseen arenas; raises EvaluationFailedError."""
    asked = {"policy": policy, "episodes": episodes, "seed": EVALUATION_SEED}
    evaluation_id = pair.trainerd.client.post("/evaluate", asked)["id"]
    while True:
        evaluation = pair.trainerd.get(f"/evaluations/{evaluation_id}")
        pair.roverd.check()
        stage = evaluation["stage"]
        shown.show(evidence, time.monotonic(), f"evaluating {policy} on {episodes} unseen arenas")
        if stage == "finished":
            return evaluation
        if stage == "failed":
            raise EvaluationFailedError(f"evaluation of {policy}: {evaluation['reason']}")
        time.sleep(POLL_S)


def screen(options: argparse.Namespace) -> contextlib.AbstractContextManager[Screen]:
    """Return where the run is shown."""
    from trainerd.demo.screen import Lines, on_terminal  # noqa: PLC0415 - rich is not needed to print the help

    return contextlib.nullcontext(Lines()) if options.headless else on_terminal()


def write(options: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write the JSON file and the picture, and print what was reached."""
    from trainerd.demo.curve import draw  # noqa: PLC0415 - as above

    text = json.dumps(figures, indent=1) + "\n"
    if options.output.is_dir():
        (options.output / "result.json").write_text(text)
    if options.json:
        options.json.write_text(text)
    if figures["steps"] == 0:
        return
    draw(figures, options.output / "learning-curve.png")
    print(summary(figures))
    print(f"curve    {options.output / 'learning-curve.png'}")


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whatever the shell that started it ignores
        signal.signal(each, signal.default_int_handler)
    logs.configure("demo", level="warning")  # what the daemons say stands in their own files
    sys.exit(main())
