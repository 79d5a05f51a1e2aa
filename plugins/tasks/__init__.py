"""Tasks that ship with roverloop: reach a goal, and drive without one."""
