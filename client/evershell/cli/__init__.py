"""The command `evershell`, with the commands of callers."""
