"""The commands of `python -m server`, one module each."""
