"""The command `evershell`: one module for each command of callers."""
