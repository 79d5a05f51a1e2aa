"""What may be wrong at the robot: each check says what it measured, what it expected, and what to do."""

from roverd.doctor.running import examine
from roverd.doctor.standing import examine_without

__all__ = ["examine", "examine_without"]
