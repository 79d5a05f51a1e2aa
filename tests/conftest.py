"""What all tests share."""

from hypothesis import settings

# No deadline for an example: machines are busy, and some functions compile at their first call.
settings.register_profile("roverloop", deadline=None)
settings.load_profile("roverloop")
