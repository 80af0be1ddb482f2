"""Organizations and their API keys."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from evershell.core.caller import ApiKey, KeyTemplate
from evershell.store.connections import Pool, connected
from evershell.store.group_commit import GroupCommit
from evershell.store.rows import insert
from evershell.store.service_clock import SERVICE_TIME

# The maximum number of keys in one query, which then takes a few milliseconds.
_MAX_BATCH = 500
# Pause after a query for several keys. It limits a worker to a hundred of them a second, which
# takes about 3 % of its time.
_PAUSE_SECONDS = 0.01
_COLUMNS = tuple(field.name for field in fields(ApiKey))
_KEY = ", ".join(_COLUMNS)
# The time of a key that was stored less than a minute ago is not stored again. Several workers that
# serve the same key then write it about once a minute in all.
_RECORD_USE = """
    UPDATE api_keys SET last_used_at = used.at
    FROM unnest(%s::text[], %s::timestamptz[]) AS used (id, at)
    WHERE api_keys.id = used.id
      AND (last_used_at IS NULL OR last_used_at <= used.at - interval '1 minute')
"""


class PostgresKeys:
    """The keys in the database. Each method raises UnavailableError if it does not answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # Anyone can send unknown keys. Batches look up any number of them over one connection.
        self._lookups = GroupCommit(self._find_keys, max_batch=_MAX_BATCH, at_once=1)

    async def ensure_org(self, org_id: str, slug: str) -> None:
        """Adds the organization, or changes its slug.

        Raises ValueError if another organization has the slug.
        """
        async with connected(self._pool) as connection:
            cursor = await connection.execute(
                "INSERT INTO orgs (id, slug) SELECT %(id)s, %(slug)s "
                "WHERE NOT EXISTS (SELECT FROM orgs WHERE slug = %(slug)s AND id <> %(id)s) "
                "ON CONFLICT (id) DO UPDATE SET slug = excluded.slug",
                {"id": org_id, "slug": slug},
            )
            if cursor.rowcount == 0:
                raise ValueError(f"Another organization has the slug {slug}.")

    async def find_org_slug(self, org_id: str) -> str | None:
        """The slug, which is the first part of the organization's host name."""
        async with connected(self._pool) as connection:
            cursor = await connection.execute(
                "SELECT slug FROM orgs WHERE id = %s", (org_id,), prepare=True
            )
            row = await cursor.fetchone()
        return None if row is None else row.slug

    async def find_key(self, sha256: bytes) -> ApiKey | None:
        """The key with this SHA-256, revoked or not. Concurrent calls share a query."""
        return await self._lookups(sha256)

    async def _find_keys(self, hashes: Sequence[bytes]) -> Sequence[ApiKey | None]:
        async with connected(self._pool) as connection:
            query = f"SELECT sha256, {_KEY} FROM api_keys WHERE sha256 = ANY(%s)"
            cursor = await connection.execute(query, (list(hashes),), prepare=True)
            keys = {row.sha256: _key_of(row) for row in await cursor.fetchall()}
        if len(hashes) > 1:
            await asyncio.sleep(_PAUSE_SECONDS)
        return [keys.get(each) for each in hashes]

    async def create_key(self, key: ApiKey, sha256: bytes) -> None:
        """Adds a key of an organization that exists."""
        async with connected(self._pool) as connection:
            await connection.execute(
                insert("api_keys", (*_COLUMNS, "sha256")),
                (*(getattr(key, column) for column in _COLUMNS), sha256),
            )

    async def list_keys(self, org_id: str) -> Sequence[ApiKey]:
        """The organization's keys, newest first, including revoked ones."""
        async with connected(self._pool) as connection:
            query = f"SELECT {_KEY} FROM api_keys WHERE org_id = %s ORDER BY id DESC"
            cursor = await connection.execute(query, (org_id,))
            return [_key_of(row) for row in await cursor.fetchall()]

    async def now(self) -> datetime:
        async with connected(self._pool) as connection:
            row = await (await connection.execute(f"SELECT {SERVICE_TIME} AS now")).fetchone()
        assert row is not None
        moment: datetime = row.now
        return moment

    async def revoke_key(self, key_id: str, now: datetime) -> bool:
        """Revokes the key. Returns False if there is no such key or it is revoked already."""
        async with connected(self._pool) as connection:
            cursor = await connection.execute(
                "UPDATE api_keys SET revoked_at = %s WHERE id = %s AND revoked_at IS NULL",
                (now, key_id),
            )
            return cursor.rowcount == 1

    async def record_use(self, used_at: Mapping[str, datetime]) -> None:
        """Records when each key, by id, was last used. Keys that do not exist are ignored."""
        # In the order of their ids, so that two workers cannot wait for each other's row locks.
        ids = sorted(used_at)
        async with connected(self._pool) as connection:
            await connection.execute(_RECORD_USE, (ids, [used_at[key_id] for key_id in ids]))

    async def list_orgs(self) -> Sequence[tuple[str, str, int]]:
        """The id, the slug and the number of valid keys of each organization, by slug."""
        async with connected(self._pool) as connection:
            cursor = await connection.execute(
                "SELECT orgs.id, slug, count(api_keys.id) AS keys FROM orgs "
                "LEFT JOIN api_keys ON org_id = orgs.id AND revoked_at IS NULL "
                f"AND (expires_at IS NULL OR expires_at > {SERVICE_TIME}) "
                "GROUP BY orgs.id ORDER BY slug"
            )
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
