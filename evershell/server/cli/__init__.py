"""The commands of `python -m evershell.server`, one module each."""
