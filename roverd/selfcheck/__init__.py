"""Does the robot move as it is told, and measure how it moves? Asked before a policy may drive, and all along."""

from roverd.selfcheck.service import SelfCheck, SelfCheckError

__all__ = ["SelfCheck", "SelfCheckError"]
