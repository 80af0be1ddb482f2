"""The commands of `python -m evershell.commands`, one module each."""
