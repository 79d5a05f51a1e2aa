"""What must hold of a stored episode, as pure functions over its records; docs/audit.md explains each check."""
