"""What every daemon has: settings, services, logs, the control socket and its command line."""
