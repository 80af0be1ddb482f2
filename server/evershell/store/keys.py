"""Organizations and their API keys."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import psycopg
import structlog

from evershell.core.caller import ApiKey, KeyTemplate
from evershell.core.errors import UnavailableError
from evershell.store import service_clock
from evershell.store.batch import Batch
from evershell.store.pool import Pool, connected, fetch_one
from evershell.store.statements import statements

# The maximum number of keys in one statement, which then takes a few milliseconds.
_MAX_BATCH = 500
# The pause after a query for several keys. It limits a worker to a hundred such queries a second,
# which take about 3 % of the worker's time.
_PAUSE_SECONDS = 0.01
# How long the times at which keys were used stay in memory before they are stored, and for how many
# keys at most.
_USE_SECONDS, _MAX_USED = 60.0, 100_000
SQL = statements("keys", **vars(service_clock.SQL))

_log = structlog.get_logger()


class PostgresKeys:
    """The keys in the database. Async methods raise UnavailableError if it does not answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # Anyone can send unknown keys. Therefore all lookups share one connection, in batches.
        self._lookups = Batch(self._find_keys, at_most=_MAX_BATCH)
        self._uses: Batch[tuple[str, float], None] = Batch(
            self._store_uses, at_most=_MAX_BATCH, gather_seconds=_USE_SECONDS, capacity=_MAX_USED
        )

    async def ensure_org(self, org_id: str, slug: str) -> None:
        """Adds the organization, or changes its slug.

        Raises ValueError if another organization has the slug.
        """
        async with connected(self._pool) as connection:
            cursor = await connection.execute(SQL.ensure_org, {"id": org_id, "slug": slug})
            if cursor.rowcount == 0:
                raise ValueError(f"Another organization has the slug {slug}.")

    async def find_org_slug(self, org_id: str) -> str | None:
        """The slug in the organization's host name; None if there is no such organization."""
        row = await fetch_one(self._pool, SQL.find_org_slug, org_id=org_id)
        return None if row is None else row.slug

    async def find_key(self, sha256: bytes) -> ApiKey | None:
        """The key with this SHA-256, revoked or not. Concurrent calls share a query."""
        return await self._lookups(sha256)

    async def _find_keys(self, hashes: Sequence[bytes]) -> Sequence[ApiKey | None]:
        async with connected(self._pool) as connection:
            parameters = {"hashes": list(hashes)}
            cursor = await connection.execute(SQL.find_keys, parameters, prepare=True)
            keys = {row.sha256: _key_of(row) for row in await cursor.fetchall()}
        if len(hashes) > 1:
            await asyncio.sleep(_PAUSE_SECONDS)
        return [keys.get(each) for each in hashes]

    async def create_key(self, key: ApiKey, sha256: bytes) -> None:
        """Adds a key to an existing organization."""
        async with connected(self._pool) as connection:
            await connection.execute(SQL.create_key, asdict(key) | {"sha256": sha256})

    async def list_keys(self, org_id: str) -> Sequence[ApiKey]:
        """The organization's keys, newest first, including revoked ones."""
        async with connected(self._pool) as connection:
            cursor = await connection.execute(SQL.list_keys, {"org_id": org_id})
            return [_key_of(row) for row in await cursor.fetchall()]

    async def now(self) -> datetime:
        async with connected(self._pool) as connection:
            row = await (await connection.execute(service_clock.SQL.service_time_now)).fetchone()
        assert row is not None
        moment: datetime = row.now
        return moment

    async def revoke_key(self, key_id: str, now: datetime) -> bool:
        """Revokes the key. Returns False if there is no such key or it is revoked already."""
        async with connected(self._pool) as connection:
            cursor = await connection.execute(SQL.revoke_key, {"now": now, "key_id": key_id})
            return cursor.rowcount == 1

    def record_use(self, key_id: str, now: float) -> None:
        """Stores, after up to a minute, that the key was used. `now` is in seconds since 1970."""
        self._uses.put((key_id, now), key_id)

    async def drained(self) -> None:
        """Stores the times of use that are not stored yet."""
        await self._uses.drained()

    async def _store_uses(self, uses: Sequence[tuple[str, float]]) -> None:
        # Sorted by id, so that workers usually lock the rows in the same order. After a deadlock,
        # the uses are stored again.
        uses = sorted(uses)
        parameters = {
            "ids": [key_id for key_id, _ in uses],
            "times": [datetime.fromtimestamp(at, UTC) for _, at in uses],
        }
        try:
            async with connected(self._pool) as connection:
                await connection.execute(SQL.record_use, parameters)
        except (UnavailableError, psycopg.Error) as error:
            # psycopg.Error is raised, for example, if the role may not update keys yet.
            _log.warning("key_use_not_stored", error=str(error).strip(), keys=len(uses))
            raise UnavailableError(str(error)) from error

    async def list_orgs(self) -> Sequence[tuple[str, str, int]]:
        """The id, the slug and the number of valid keys of each organization, sorted by slug."""
        async with connected(self._pool) as connection:
            cursor = await connection.execute(SQL.list_orgs)
            return [(row.id, row.slug, row.keys) for row in await cursor.fetchall()]


def _key_of(row: Any) -> ApiKey:
    return ApiKey(
        id=row.id,
        org_id=row.org_id,
        name=row.name,
        template=KeyTemplate(row.template),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )
