"""The command `evershell`, and its subcommands that call the service."""
