"""Idempotency keys, and the answers of the first calls with them."""

from dataclasses import asdict
from typing import Any

from evershell.core.change import FirstCall, KeyTakenError
from evershell.store.part import Part
from evershell.store.pool import Connection, fetch_one
from evershell.store.statements import statements

SQL = statements("idempotency_keys")


async def store_key(connection: Connection, call: FirstCall) -> None:
    """Stores the call's key in the connection's transaction. Raises KeyTakenError."""
    values = _values(call)
    stored = await connection.execute(SQL.store_key, values, prepare=True)
    if await stored.fetchone() is None:
        raise KeyTakenError
    await connection.execute(SQL.prune_keys, values, prepare=True)


class IdempotencyKeys(Part):
    """Implements core.ports.IdempotencyKeys."""

    async def find_first_call(self, call: FirstCall) -> FirstCall | None:
        row = await fetch_one(self._pool.others, SQL.find_call, **_values(call))
        return None if row is None else FirstCall(**row._asdict())

    async def record_answer(self, first_call: FirstCall, answer: str) -> str:
        values = _values(first_call) | {"answer": answer}
        row = await fetch_one(self._pool.others, SQL.store_answer, **values)
        return answer if row is None else str(row.answer)


def _values(call: FirstCall) -> dict[str, Any]:
    return asdict(call) | {"unowned_key": call.unowned_key, "expires_before": call.expires_before}
