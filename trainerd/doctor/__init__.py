"""What may be wrong at the trainer: each check says what it measured, what it expected, and what to do."""

from trainerd.doctor.running import examine
from trainerd.doctor.standing import examine_without

__all__ = ["examine", "examine_without"]
