"""Built-in actuators: where control writes its commands."""
