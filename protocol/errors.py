"""The base of every error that roverloop raises on purpose."""


class RoverError(Exception):
    """Something went wrong in a way that the message explains to the person who must act."""
