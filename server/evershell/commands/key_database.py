"""Opens the database for the commands `keys` and `orgs`, with human-readable error messages."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from evershell.app.program import open_keys
from evershell.commands.environment import problems_reported, read_ready, read_settings
from evershell.store.keys import PostgresKeys

Answer = TypeVar("Answer")


def with_keys(work: Callable[[PostgresKeys], Awaitable[Answer]]) -> Answer:
    """Runs `work` on the database of the settings, or else of the stack that runs in STATE_DIR.

    Raises click.ClickException.
    """
    settings = read_settings()
    database_url = settings.session_url
    if not database_url and (ready := read_ready(settings.state_dir)):
        database_url = ready.database_url
    if not database_url:
        raise click.ClickException(
            f"There is no database: no stack runs in {settings.state_dir}. "
            "Start one with `evershell up`, or set DATABASE_URL."
        )

    async def run() -> Answer:
        async with open_keys(database_url) as stored:
            return await work(stored)

    with problems_reported():
        return asyncio.run(run())
