"""Idempotency keys, and the answers of the calls that had them first."""

from dataclasses import fields

from evershell.core.change import FirstCall, KeyTakenError
from evershell.store.connections import Connection, Pool, fetch_one

CALL_COLUMNS = tuple(field.name for field in fields(FirstCall))
CALL = ", ".join(CALL_COLUMNS)
# The previous version stored no caller with a key.
_UNOWNED = (
    "SELECT FROM idempotency_keys WHERE org_id = %s AND key = %s AND fingerprint = %s "
    "AND called_at > %s"
)
# The insertion waits for a transaction that is about to store the same key. An expired key is
# replaced.
STORE_KEY = (
    f"INSERT INTO idempotency_keys AS stored ({CALL}) SELECT "
    + ", ".join(["%s"] * len(CALL_COLUMNS))
    + f" WHERE NOT EXISTS ({_UNOWNED})"
    + " ON CONFLICT (org_id, key) DO UPDATE SET "
    + ", ".join(f"{column} = EXCLUDED.{column}" for column in CALL_COLUMNS[2:])
    + " WHERE stored.called_at <= %s RETURNING true"
)
# Each call with a key removes up to two expired ones, so their number shrinks. A call never waits
# for another one that removes the same keys.
PRUNE_KEYS = (
    "DELETE FROM idempotency_keys WHERE (org_id, key) IN ("
    "SELECT org_id, key FROM idempotency_keys WHERE called_at <= %s ORDER BY called_at LIMIT 2 "
    "FOR UPDATE SKIP LOCKED)"
)
FIND_CALL = (
    f"SELECT {CALL} FROM idempotency_keys WHERE org_id = %s AND called_at > %s "
    "AND (key = %s OR key = %s AND fingerprint = %s) ORDER BY key = %s DESC LIMIT 1"
)
STORE_ANSWER = (
    "UPDATE idempotency_keys SET answer = coalesce(nullif(answer, ''), %s) "
    "WHERE org_id = %s AND key = %s AND task_id = %s RETURNING answer"
)


async def store_key(connection: Connection, call: FirstCall) -> None:
    """Stores the key in the transaction of the connection. Raises KeyTakenError."""
    values = [getattr(call, column) for column in CALL_COLUMNS]
    expired = call.expires_before
    unowned = (call.org_id, call.unowned_key, call.fingerprint, expired)
    stored = await connection.execute(STORE_KEY, (*values, *unowned, expired), prepare=True)
    if await stored.fetchone() is None:
        raise KeyTakenError
    await connection.execute(PRUNE_KEYS, (expired,), prepare=True)


class IdempotencyKeys:
    """Implements Store.find_first_call and record_answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def find_first_call(self, call: FirstCall) -> FirstCall | None:
        keys = (call.key, call.unowned_key, call.fingerprint, call.key)
        parameters = (call.org_id, call.expires_before, *keys)
        row = await fetch_one(self._pool, FIND_CALL, parameters)
        return None if row is None else FirstCall(**row._asdict())

    async def record_answer(self, first_call: FirstCall, answer: str) -> str:
        parameters = (answer, first_call.org_id, first_call.key, first_call.task_id)
        row = await fetch_one(self._pool, STORE_ANSWER, parameters)
        return answer if row is None else str(row.answer)
