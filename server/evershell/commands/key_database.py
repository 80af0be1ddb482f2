"""Opens the database for the commands `keys` and `orgs`, with human-readable error messages."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
import psycopg

from evershell.app.wiring import open_keys
from evershell.commands.environment import read_ready, read_settings
from evershell.core.errors import UnavailableError
from evershell.store.connections import problem_of
from evershell.store.keys import PostgresKeys

Answer = TypeVar("Answer")


def with_keys(work: Callable[[PostgresKeys], Awaitable[Answer]]) -> Answer:
    """Runs `work` on the database of DATABASE_URL or of the stack that runs on this machine.

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

    try:
        return asyncio.run(run())
    except UnavailableError as error:
        raise click.ClickException(f"The database does not answer: {error}.") from error
    except psycopg.Error as error:
        message = f"The database cannot be used: {problem_of(error)}."
        raise click.ClickException(message) from None
