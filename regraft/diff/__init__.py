"""What changed between two programs, and why."""
