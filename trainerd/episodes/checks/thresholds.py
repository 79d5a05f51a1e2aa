"""The numbers that the checks compare with; docs/audit.md says why each is what it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Bounds of the checks; times in units of the control period where the name says ``periods``."""

    late_periods: float = 1.5
    """A tick that comes later after the one before, or sees an older observation, is late."""
    late_share: float = 0.1
    """Share of late, unflagged ticks from which a loop does not hold its rate."""
    least_late: int = 3
    drift_periods: float = 2.0
    """Largest difference between the time that observations and that control ticks took."""
    period_share: float = 0.02
    """Largest deviation of a tick's time from whole periods, and of lock-step observations from one."""
    short_share: float = 0.5
    """Share of decisions shorter than action_repeat from which the declared repeat is wrong."""
    sum_error: float = 1e-6
    range_share: float = 0.05
    """How far beyond its declared range, in ranges, a state element may read."""
    jump_spans: float = 1.5
    """Largest change of a speed in one tick, in spans of its command."""
    action_error: float = 1e-5
    """Largest difference of an action computed again, in ranges of the action."""
    least_rows: int = 30
    """Ticks that a judgement on speed and command needs."""
    excitation: float = 0.1
    """Root mean square of a command, in its largest value, below which its gain is not judged."""
    least_gain: float = 0.5
    most_gain: float = 1.5
    event: float = 0.2
    """Difference of command and speed, in the largest command, that must show in the next speed."""
    steady: float = 0.05
    """Difference below which a change of speed counts as noise."""
    explained: float = 0.85
    """Least share of the speed's changes that the commands explain."""
    foreseen: float = 0.2
    """Share that only a later command explains, from which the order of cause and effect is wrong."""
    frozen_frames: int = 3
    """Identical frames in a row, beyond those of a camera slower than control."""
    frozen_m: float = 0.05
    frozen_rad: float = 0.1
    """Motion during identical frames from which they are frozen."""
    blank_share: float = 0.5
    """Share of blank frames in an episode from which a camera sees nothing."""
    least_blank: int = 10
    """Blank frames that a judgement needs: depth has no reading of what is too near."""
    blank_valid: float = 0.01
    """A depth frame with a smaller share of readings is blank."""
    layout_ratio: float = 0.7
    """A frame this much smoother with height and width swapped was laid out wrongly."""
    layout_frames: int = 8
    mean_error: float = 1e-4
    log_prob_error: float = 1e-4
