"""The command `evershell`."""
