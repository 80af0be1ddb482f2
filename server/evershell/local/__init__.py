"""The stack on one machine: starts, supervises, restarts and stops all programs."""
