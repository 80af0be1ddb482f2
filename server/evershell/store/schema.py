"""Waits for the schema of this version."""

import asyncio
from importlib import resources

import psycopg
import structlog

from evershell.core.errors import UnavailableError
from evershell.store.pool import Pool, connected
from evershell.store.statements import statements

_RETRY_SECONDS = 1.0
SQL = statements("schema")

_log = structlog.get_logger()


async def await_schema(pool: Pool) -> None:
    """Waits until all migrations of this version are applied and all its functions exist.

    Migrations of later versions do no harm, because they only add to the schema.
    """
    own = _own("migrations") | _own("functions")
    logged: set[str] = set()
    while True:
        try:
            missing = own - await _applied(pool)
        except UnavailableError:
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        if not missing:
            return
        if missing != logged:
            logged = missing
            _log.warning("schema_outdated", missing=sorted(missing), remedy="evershell migrate")
        await asyncio.sleep(_RETRY_SECONDS)


async def _applied(pool: Pool) -> set[str]:
    try:
        async with connected(pool) as connection:
            cursor = await connection.execute(SQL.list_applied)
            return {str(row.name) for row in await cursor.fetchall()}
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
        # The database was never migrated, or this service's role has no access to it.
        return set()


def _own(folder_name: str) -> set[str]:
    folder = resources.files("evershell.store") / folder_name
    return {
        file.name.removesuffix(".sql") for file in folder.iterdir() if file.name.endswith(".sql")
    }
