"""A robot as the safety gate knows it: ticks go in, verdicts come out, and memory and clock go on in between."""

import math

from roverd.control.safety import POLICY, Limits, Memory, Request, Sensed, Verdict, Wheel, decide, start

NAN, INF = math.nan, math.inf
PERIOD_NS = 100_000_000
BASE = Limits(low=(-0.5, -1.5), high=(0.5, 1.5), safe_action=(0.0, 0.0), period_s=0.1)
"""A base with two velocities at 10 Hz: forward and turning."""
ARM = Limits(low=(0.0, -3.0), high=(0.2, 3.0), safe_action=(0.0, None), period_s=0.1)
"""Something that drives and holds a joint."""
FORWARD = (0.25, 0.5)


class Robot:
    """Runs ticks of 100 ms; by default the policy drives through free space at a speed that is as commanded."""

    def __init__(self, limits: Limits = BASE) -> None:
        self.limits = limits
        self.memory: Memory = start(limits)
        self.now_ns = 10**12
        self.frame = 0

    def tick(self, proposal=FORWARD, **changes) -> Verdict:
        """Decide a tick; keywords are fields of Request and Sensed."""
        self.now_ns += PERIOD_NS
        self.frame += 1
        request = Request(proposal, POLICY, None, e_stop=False)
        sensed = Sensed(self.now_ns, 0, 8.0, self.frame, False, self.memory.last[0], 0.0, 0.0, True)
        asked = {key: changes.pop(key) for key in tuple(changes) if key in Request._fields}
        verdict, self.memory = decide(self.limits, request._replace(**asked), sensed._replace(**changes), self.memory)
        return verdict

    def wheel(self, action, *, ms: int = 200, locks: bool = False) -> Wheel:
        """Return a human's command that counts for so many milliseconds from the tick that comes next."""
        return Wheel(action, self.now_ns + PERIOD_NS + ms * 1_000_000, locks)
