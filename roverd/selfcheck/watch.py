"""While the robot drives: do its sensors still follow what it is told? A slow look, for flipped signs and loose cables.

The last seconds are cut into blocks of half a second. Blocks with a clear command are counted by what each signal says
in them; only a signal that is wrong in nearly all of several such blocks is told of, so that a lag, a bump or a wall
tells nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from protocol.node.log import get_logger
from roverd.selfcheck.signals import LEFT, Sample, axis_of, mean, speeds, unit_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

log = get_logger()
BLOCK_NS = 500_000_000
CLEAR_SHARE = 0.2
"""A command of less than this share of the fastest tells nothing."""
STILL_SHARE, OPPOSITE_SHARE = 0.1, 0.3
LEAST_BLOCKS = 6
LEAST_SHARE_OF_BLOCKS = 0.9


class Block(NamedTuple):
    """Half a second with a clear command on an axis: that command and what one signal measured."""

    command: float
    measured: float
    stamp_ns: int = 0


def block(samples: Sequence[Sample], fastest: tuple[float, float]) -> dict[str, Block]:
    """Return by signal what it says in neighbouring samples, where the command of its axis is clear.

    ``fastest`` are the limits of forward (m/s) and to the left (rad/s). Samples that lack most of a block tell nothing.
    """
    if len(samples) < 2 or (samples[-1].stamp_ns - samples[0].stamp_ns) * 2 < BLOCK_NS:
        return {}
    commands = [mean([sample.commands[axis] for sample in samples]) for axis in (0, 1)]
    is_clear = [limit > 0 and abs(each) >= CLEAR_SHARE * limit for each, limit in zip(commands, fastest, strict=True)]
    if not any(is_clear):
        return {}
    stamp_ns = samples[-1].stamp_ns
    found = {}
    for name, value in speeds(samples).items():
        axis = int(axis_of(name) == LEFT)
        if is_clear[axis]:
            found[name] = Block(commands[axis], value, stamp_ns)
    return found


def contradiction(name: str, found: Collection[Block]) -> str:
    """Say what a signal contradicts, or nothing; what is not clear counts as agreement."""
    if len(found) < LEAST_BLOCKS:
        return ""
    shares = [each.measured / each.command for each in found]
    least = LEAST_SHARE_OF_BLOCKS * len(shares)
    is_opposite = sum(share <= -OPPOSITE_SHARE for share in shares) >= least
    if not is_opposite and sum(abs(share) < STILL_SHARE for share in shares) < least:
        return ""
    commanded, measured = mean([abs(each.command) for each in found]), mean([abs(each.measured) for each in found])
    unit = unit_of(name)
    fact = f"in {len(found)} half seconds {commanded:.2f} {unit} was commanded and {measured:.2f} was measured"
    if is_opposite:
        return f"{name} says the opposite of what is commanded: {fact}, the other way"
    return f"{name} does not follow what is commanded: {fact}; the robot is stuck, or a sensor is unplugged"


class Watch:
    """Look at each half second of driving, and remember what contradicts; the loop thread owns it."""

    def __init__(self, fastest: tuple[float, float], window_s: float) -> None:
        """Look back ``window_s`` on the robot's own clock; 0 looks at nothing."""
        self.contradictions: dict[str, str] = {}
        self._fastest, self._window_ns = fastest, int(window_s * 1e9)
        self._part: list[Sample] = []
        self._blocks: dict[str, deque[Block]] = {}

    def add(self, sample: Sample) -> None:
        """Take a tick."""
        if not self._window_ns:
            return
        if self._part and (
            sample.stamp_ns // BLOCK_NS != self._part[0].stamp_ns // BLOCK_NS
            or sample.elapsed_s < self._part[-1].elapsed_s  # another episode: the odometry jumped
        ):
            self._close()
        self._part.append(sample)

    def forget(self) -> None:
        """Begin anew, after a self-check."""
        self._part.clear()
        self._blocks.clear()
        self.contradictions.clear()

    def _close(self) -> None:
        part, self._part = self._part, []
        oldest_ns = part[-1].stamp_ns - self._window_ns
        for name, each in block(part, self._fastest).items():
            kept = self._blocks.setdefault(name, deque())
            kept.append(each)
            while kept[0].stamp_ns < oldest_ns:
                kept.popleft()
            if len(kept) >= LEAST_BLOCKS:
                self._judge(name, contradiction(name, kept))

    def _judge(self, name: str, told: str) -> None:
        was_told = self.contradictions.pop(name, "")
        if told:
            self.contradictions[name] = told
        if told and not was_told:
            hint = "stop the robot and look at the sensor and its cable; then roverctl selfcheck"
            log.warning("motion.contradicts", signal=name, fact=told, hint=hint)
        elif was_told and not told:
            log.info("motion.agrees", signal=name)
