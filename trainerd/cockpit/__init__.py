"""What people watch a run with."""
