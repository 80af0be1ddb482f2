"""The command `fence`. It uses the database directly."""

import click

from evershell.cli.terminal import say
from evershell.commands.environment import problems_reported, read_settings
from evershell.store.fence import fence as fence_agents


@click.command(
    help="Fence all agents, after the database of DATABASE_URL was restored from a backup and "
    "before any worker or controller uses it. Every workspace moves to an epoch that no agent has "
    "had. Its open task ends when the controller starts: `cancelled` if a cancellation is "
    "recorded, otherwise `failed`."
)
def fence() -> None:
    """Fails if a worker or a controller is connected, or if a controller leads."""
    settings = read_settings()
    if not settings.session_url:
        raise click.ClickException("There is no database. Set DATABASE_URL.")
    with problems_reported():
        count = fence_agents(settings.session_url)
    say(f"All agents are fenced. Number of workspaces: {count}.")
