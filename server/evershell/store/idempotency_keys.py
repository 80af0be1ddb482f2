"""The idempotency keys: how they are stored, found and removed."""

from dataclasses import fields
from datetime import datetime

from evershell.core.idempotency_key import FirstCall, KeyTakenError
from evershell.store.pool import Connection, Pool, connected
from evershell.store.rows import Row

_COLUMNS = tuple(field.name for field in fields(FirstCall))
_ALL = ", ".join(_COLUMNS)
# The insertion waits for a transaction that is about to store the same key. An expired key is
# replaced.
_STORE = (
    f"INSERT INTO idempotency_keys AS stored ({_ALL}) VALUES ({', '.join(['%s'] * len(_COLUMNS))}) "
    "ON CONFLICT (org_id, key) DO UPDATE SET "
    + ", ".join(f"{column} = EXCLUDED.{column}" for column in _COLUMNS[2:])
    + " WHERE stored.called_at <= %s RETURNING true"
)
# Each call with a key removes up to two expired ones, so their number shrinks. A call never waits
# for another one that removes the same keys.
_PRUNE = (
    "DELETE FROM idempotency_keys WHERE (org_id, key) IN ("
    "SELECT org_id, key FROM idempotency_keys WHERE called_at <= %s ORDER BY called_at LIMIT 2 "
    "FOR UPDATE SKIP LOCKED)"
)
_FIND = f"SELECT {_ALL} FROM idempotency_keys WHERE org_id = %s AND key = %s AND called_at > %s"
_ANSWER = (
    "UPDATE idempotency_keys SET answer = coalesce(nullif(answer, ''), %s) "
    "WHERE org_id = %s AND key = %s AND task_id = %s RETURNING answer"
)


async def store_key(connection: Connection, call: FirstCall) -> None:
    """Stores the key in the transaction of the connection. Raises KeyTakenError."""
    values: Row = [getattr(call, column) for column in _COLUMNS]
    expired = call.expires_before
    stored = await connection.execute(_STORE, (*values, expired), prepare=True)
    if await stored.fetchone() is None:
        raise KeyTakenError
    await connection.execute(_PRUNE, (expired,), prepare=True)


async def find_first_call(pool: Pool, org_id: str, key: str, after: datetime) -> FirstCall | None:
    """See Store.find_first_call."""
    async with connected(pool) as connection:
        row = await (await connection.execute(_FIND, (org_id, key, after))).fetchone()
    return None if row is None else FirstCall(**dict(zip(_COLUMNS, row, strict=True)))


async def record_answer(pool: Pool, call: FirstCall, answer: str) -> str:
    """See Store.record_answer."""
    async with connected(pool) as connection:
        parameters = (answer, call.org_id, call.key, call.task_id)
        row = await (await connection.execute(_ANSWER, parameters)).fetchone()
    return answer if row is None else str(row[0])
