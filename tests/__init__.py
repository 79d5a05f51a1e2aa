"""Every test of roverloop, and what the tests share."""
