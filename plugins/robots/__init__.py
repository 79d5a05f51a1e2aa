"""Robots that ship with roverloop: a physics simulator and a cheap synthetic one for tests."""
