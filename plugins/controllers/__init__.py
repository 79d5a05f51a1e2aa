"""Controllers that ship with roverloop: random, scripted and reactive, for baselines and for ``reward lint``."""
