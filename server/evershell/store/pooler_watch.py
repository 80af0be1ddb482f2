"""Notices that a pooler has ended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import structlog

from evershell.store.pool import conninfo
from evershell.store.primary import PrimaryConnection

_RETRY_SECONDS = 0.25

_log = structlog.get_logger()


@asynccontextmanager
async def pooler_watched(database_url: str) -> AsyncIterator["asyncio.Future[None]"]:
    """Waits until the pooler takes a connection. The future is done when the pooler has closed it.

    The connection is used for nothing else, so a pooler that is busy is not taken for one that has
    ended.
    """
    connection = await _connected(conninfo(database_url, ""))
    async with connection:
        loop, descriptor = asyncio.get_running_loop(), connection.fileno()
        closed: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            loop.remove_reader(descriptor)
            closed.set_result(None)

        # The pooler sends nothing on an idle connection, so it is readable only if it was closed.
        loop.add_reader(descriptor, end)
        try:
            yield closed
        finally:
            loop.remove_reader(descriptor)


async def _connected(pooler: str) -> PrimaryConnection:
    while True:
        try:
            return await PrimaryConnection.connect(pooler, autocommit=True)
        except psycopg.OperationalError as error:
            _log.warning("pooler_unreachable", error=str(error).strip())
            await asyncio.sleep(_RETRY_SECONDS)
