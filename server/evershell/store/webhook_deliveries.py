"""The deliveries of webhooks: claims those that are due, and records the results.

Every statement skips rows that are locked. It waits for nothing, so it delays no event and takes
part in no deadlock. A result that was not recorded is recorded later, or the delivery is claimed
again once its lease has ended: an event is then sent twice.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any

from psycopg.types.json import Json

from evershell.core.errors import UnavailableError
from evershell.core.event import Event
from evershell.core.ports import Clock
from evershell.core.webhook import AttemptResult, ClaimedDelivery, DeliveryKey
from evershell.store.connections import Pool, connected
from evershell.store.rows import EVENT_COLUMNS, event_of
from evershell.store.webhooks import COLUMNS, webhook_of

# How long a claim lasts without a result.
LEASE_SECONDS = 60.0
# A claim has at most this many deliveries of a receiver, and events of a delivery.
MAX_OF_RECEIVER = 100
_MAX_EVENTS = 4
# Larger events are read one by one, because a claim may have thousands. So are compressed ones:
# their size is not known before.
_MAX_PAYLOAD_BYTES = 8_192
# A claim looks at this many receivers with pending deliveries, and at this many of an organization.
_MAX_RECEIVERS = 200
MAX_RECEIVERS_OF_ORG = 16
# Deliveries are kept this long after they were delivered or have failed.
_KEPT = timedelta(days=30)
_MAX_PRUNED = 1_000

_KEY = "workspace_id, task_id, webhook_id"
# Each receiver after the previous one, by the index: the deliveries in between are not read.
_NEXT_RECEIVER = (
    "SELECT org_id, receiver FROM webhook_deliveries "
    "WHERE due_at IS NOT NULL AND (org_id, receiver) > ({after}) ORDER BY org_id, receiver LIMIT 1"
)
_CLAIM = f"""
WITH RECURSIVE receivers AS (
    (SELECT org_id, receiver, 1 AS number
     FROM ({_NEXT_RECEIVER.format(after="%(after_org)s, %(after_receiver)s")}) first)
    UNION ALL
    SELECT later.org_id, later.receiver, r.number + 1
    FROM receivers r
    CROSS JOIN LATERAL ({_NEXT_RECEIVER.format(after="r.org_id, r.receiver")}) later
    WHERE r.number < {_MAX_RECEIVERS}
), free AS (
    SELECT org_id, receiver, row_number() OVER (PARTITION BY org_id ORDER BY receiver) AS number
    FROM receivers r
    WHERE r.org_id || ' ' || r.receiver <> ALL (%(busy)s) AND r.org_id <> ALL (%(full_orgs)s)
        AND EXISTS (
            SELECT FROM webhook_deliveries d
            WHERE d.org_id = r.org_id AND d.receiver = r.receiver AND d.due_at <= %(now)s
        )
), picked AS (
    SELECT due.* FROM free CROSS JOIN LATERAL (
        SELECT {_KEY} FROM webhook_deliveries d
        WHERE d.org_id = free.org_id AND d.receiver = free.receiver AND d.due_at <= %(now)s
        ORDER BY d.due_at LIMIT {MAX_OF_RECEIVER}
        FOR UPDATE SKIP LOCKED
    ) due
    WHERE free.number <= {MAX_RECEIVERS_OF_ORG}
), removed AS (
    -- Their webhook was deleted.
    DELETE FROM webhook_deliveries d USING picked
    WHERE (d.workspace_id, d.task_id, d.webhook_id)
            = (picked.workspace_id, picked.task_id, picked.webhook_id)
        AND NOT EXISTS (SELECT FROM webhooks h WHERE h.id = picked.webhook_id)
    RETURNING 1
), claimed AS (
    UPDATE webhook_deliveries d SET claim = %(claim)s, due_at = %(leased_until)s
    FROM picked JOIN webhooks h ON h.id = picked.webhook_id
    WHERE (d.workspace_id, d.task_id, d.webhook_id)
        = (picked.workspace_id, picked.task_id, picked.webhook_id)
    RETURNING d.*
)
SELECT
    walked.walked, walked.last_org, walked.last_receiver,
    EXISTS (SELECT FROM removed) AS has_removed,
    c.workspace_id AS delivery_workspace_id, c.task_id AS delivery_task_id, c.pending_since,
    c.delivered_seq, c.attempts,
    {", ".join(f"h.{column} AS webhook_{column}" for column in COLUMNS)},
    {", ".join(f"e.{column}" for column in EVENT_COLUMNS)}
FROM (
    SELECT count(*) AS walked, (max(ARRAY[org_id, receiver]))[1] AS last_org,
        (max(ARRAY[org_id, receiver]))[2] AS last_receiver
    FROM receivers
) walked
LEFT JOIN (claimed c JOIN webhooks h ON h.id = c.webhook_id) ON true
LEFT JOIN LATERAL (
    SELECT workspace_id, seq, type, time, task_id, request_id, trace_id,
        CASE
            WHEN pg_column_size(payload) <= {_MAX_PAYLOAD_BYTES}
                AND pg_column_compression(payload) IS NULL
            THEN payload
        END AS payload
    FROM events
    WHERE workspace_id = c.workspace_id AND seq > c.delivered_seq AND seq <= c.last_seq
        AND task_id IS NOT DISTINCT FROM nullif(c.task_id, '') AND type = ANY (h.event_types)
    ORDER BY seq LIMIT {_MAX_EVENTS}
) e ON true
ORDER BY c.workspace_id, c.task_id, c.webhook_id, e.seq
"""
# A delivery with further events is due at once. Its `due_at` was not null, so a new event has
# changed only `last_seq`.
_RECORD = f"""
WITH results AS (
    SELECT * FROM json_to_recordset(%(results)s) AS r(
        workspace_id text, task_id text, webhook_id text, delivered_seq bigint, attempts integer,
        error text, retry_at timestamptz, attempted boolean
    )
), locked AS (
    -- With FOR UPDATE, `last_seq` is that of the latest version of the row.
    SELECT r.*, d.last_seq FROM results r JOIN webhook_deliveries d USING ({_KEY})
    WHERE d.claim = %(claim)s
    FOR UPDATE OF d SKIP LOCKED
), later AS (
    SELECT l.*, l.last_seq > l.delivered_seq AND (l.error = '' OR was_enabled) AS has_more,
        l.error <> '' AND l.retry_at IS NULL AND NOT was_enabled AS has_failed
    FROM locked l
    CROSS JOIN LATERAL (
        -- The webhook was disabled when the delivery was claimed, and has been enabled since.
        SELECT NOT l.attempted AND l.retry_at IS NULL AND EXISTS (
            SELECT FROM webhooks h WHERE h.id = l.webhook_id AND h.disabled_at IS NULL
        ) AS was_enabled
    ) h
)
UPDATE webhook_deliveries d
SET claim = NULL,
    delivered_seq = r.delivered_seq,
    pending_since = CASE
        WHEN r.delivered_seq > d.delivered_seq THEN %(now)s ELSE d.pending_since
    END,
    due_at = CASE WHEN r.has_more THEN %(now)s ELSE r.retry_at END,
    failed = r.has_failed,
    settled_at = CASE WHEN NOT r.has_more AND r.retry_at IS NULL THEN %(now)s::timestamptz END,
    attempts = r.attempts,
    last_error = r.error,
    last_attempt_at = CASE WHEN r.attempted THEN %(now)s ELSE d.last_attempt_at END
FROM later r
WHERE (d.workspace_id, d.task_id, d.webhook_id) = (r.workspace_id, r.task_id, r.webhook_id)
RETURNING d.workspace_id, d.task_id, d.webhook_id, r.has_more
"""
_DISABLE = "UPDATE webhooks SET disabled_at = %s WHERE id = ANY(%s) AND disabled_at IS NULL"
_READ_EVENT = f"SELECT {', '.join(EVENT_COLUMNS)} FROM events WHERE workspace_id = %s AND seq = %s"
_DELETE_SOME = (
    f"DELETE FROM webhook_deliveries WHERE ({_KEY}) IN (SELECT {_KEY} FROM webhook_deliveries d "
    f"WHERE {{condition}} LIMIT {_MAX_PRUNED} FOR UPDATE SKIP LOCKED)"
)
_NO_WEBHOOK = "NOT EXISTS (SELECT FROM webhooks h WHERE h.id = d.webhook_id)"
_PRUNE_FAILED = _DELETE_SOME.format(condition=f"failed AND {_NO_WEBHOOK}")
_PRUNE_SETTLED = _DELETE_SOME.format(condition="settled_at < %s")
# The webhook of a task that has ended gets no further event.
_PRUNE_WEBHOOKS = (
    "DELETE FROM webhooks WHERE id IN ("
    "SELECT h.id FROM webhooks h JOIN tasks t ON t.id = h.task_id "
    f"WHERE t.completed_at < %s LIMIT {_MAX_PRUNED})"
)
_SEALED = ("sealed_secret", "sealed_previous_secret", "sealed_headers")
_OTHER_KEY = " OR ".join(f"substr({column}, 1, %(length)s) <> %(key_id)s" for column in _SEALED)
_LIST_OTHER_KEY = f"SELECT id, {', '.join(_SEALED)} FROM webhooks WHERE {_OTHER_KEY} LIMIT 100"
_RESEAL = (
    f"UPDATE webhooks SET {', '.join(f'{column} = %s' for column in _SEALED)} WHERE id = %s AND "
    + " AND ".join(f"{column} IS NOT DISTINCT FROM %s" for column in _SEALED)
)
_ANY = "SELECT EXISTS (SELECT FROM webhooks) OR EXISTS (SELECT FROM webhook_deliveries) AS exist"


@dataclass(frozen=True, slots=True)
class Claimed:
    """The result of a claim."""

    deliveries: Sequence[ClaimedDelivery]
    # Whether the claim has looked at the last receiver. The next one begins with the first.
    has_wrapped: bool
    # Whether deliveries of deleted webhooks were due, and were removed. Others may be due.
    has_removed: bool


@dataclass(frozen=True, slots=True)
class Recorded:
    """Which results were recorded."""

    keys: Collection[DeliveryKey]
    # Whether some of the deliveries are due again at once.
    has_more: bool


class WebhookDeliveries:
    """The deliveries of this process. Every method raises UnavailableError."""

    def __init__(self, pool: Pool, clock: Clock, claim: str) -> None:
        """`claim` identifies the claims of this process among those of all."""
        self._pool = pool
        self._clock = clock
        self._claim = claim
        # The last receiver that was looked at. The next claim begins after it.
        self._after = ("", "")

    async def claim(self, busy: Collection[tuple[str, str]], full_orgs: Collection[str]) -> Claimed:
        """Claims what is due, except for the receivers `busy` and the organizations `full_orgs`."""
        now = self._clock()
        parameters = {
            "after_org": self._after[0],
            "after_receiver": self._after[1],
            "busy": [f"{org_id} {receiver}" for org_id, receiver in busy],
            "full_orgs": list(full_orgs),
            "now": now,
            "claim": self._claim,
            "leased_until": now + timedelta(seconds=LEASE_SECONDS),
        }
        async with connected(self._pool) as connection:
            cursor = await connection.execute(_CLAIM, parameters, prepare=True, binary=True)
            rows = await cursor.fetchall()
        walked = rows[0]
        has_wrapped = walked.walked < _MAX_RECEIVERS
        self._after = ("", "") if has_wrapped else (walked.last_org, walked.last_receiver)
        claimed = groupby((row for row in rows if row.webhook_id is not None), _key_of)
        deliveries = [_claimed_of(key, list(group)) for key, group in claimed]
        return Claimed(deliveries, has_wrapped, walked.has_removed)

    async def read_event(self, workspace_id: str, seq: int) -> Event | None:
        """The event; None if it was removed."""
        async with connected(self._pool) as connection:
            cursor = await connection.execute(_READ_EVENT, (workspace_id, seq), binary=True)
            row = await cursor.fetchone()
        return None if row is None else event_of(row)

    async def record(self, results: Sequence[AttemptResult]) -> Recorded:
        """Records the results of claims of this process, and disables webhooks.

        Leaves out those whose row is locked, or whose lease has ended and which another process has
        claimed.
        """
        parameters = {
            "results": Json([_result_json(each) for each in results]),
            "claim": self._claim,
            "now": self._clock(),
        }
        unwanted = [each.key.webhook_id for each in results if each.disables_webhook]
        async with connected(self._pool) as connection:
            if unwanted:
                await connection.execute(_DISABLE, (parameters["now"], unwanted))
            cursor = await connection.execute(_RECORD, parameters, prepare=True, binary=True)
            rows = await cursor.fetchall()
        keys = {DeliveryKey(row.workspace_id, row.task_id, row.webhook_id) for row in rows}
        return Recorded(keys, any(row.has_more for row in rows))

    async def prune(self) -> None:
        """Removes some of the deliveries that have failed and whose webhook was deleted, and of
        those that ended long ago.
        """
        before = self._clock() - _KEPT
        async with connected(self._pool) as connection:
            await connection.execute(_PRUNE_FAILED)
            await connection.execute(_PRUNE_SETTLED, (before,))
            await connection.execute(_PRUNE_WEBHOOKS, (before,))

    async def reseal(self, key_id: bytes, seal_again: Callable[[bytes, str], bytes]) -> None:
        """Calls `seal_again` for what was sealed with other keys, and stores what it returns.

        Each call does so for up to 100 webhooks. Leaves out those for which it raises
        UnavailableError.
        """
        async with connected(self._pool) as connection:
            parameters = {"key_id": key_id, "length": len(key_id)}
            cursor = await connection.execute(_LIST_OTHER_KEY, parameters, binary=True)
            for webhook_id, *sealed in await cursor.fetchall():
                try:
                    again = [each and seal_again(each, webhook_id) for each in sealed]
                except UnavailableError:
                    continue
                await connection.execute(_RESEAL, (*again, webhook_id, *sealed))


async def webhooks_exist(pool: Pool) -> bool:
    """Whether there are webhooks or deliveries. Raises UnavailableError."""
    async with connected(pool) as connection:
        row = await (await connection.execute(_ANY, prepare=True)).fetchone()
    return row is not None and bool(row.exist)


def _key_of(row: Any) -> DeliveryKey:
    return DeliveryKey(row.delivery_workspace_id, row.delivery_task_id, row.webhook_id)


def _claimed_of(key: DeliveryKey, rows: Sequence[Any]) -> ClaimedDelivery:
    first = rows[0]
    webhook = webhook_of(first, "webhook_")
    return ClaimedDelivery(
        key=key,
        webhook=webhook,
        pending_since=first.pending_since,
        delivered_seq=first.delivered_seq,
        attempts=first.attempts,
        events=[
            (row.seq, None if row.payload is None else event_of(row))
            for row in rows
            if row.seq is not None
        ],
    )


def _result_json(result: AttemptResult) -> dict[str, Any]:
    return {
        "workspace_id": result.key.workspace_id,
        "task_id": result.key.task_id,
        "webhook_id": result.key.webhook_id,
        "delivered_seq": result.delivered_seq,
        "attempts": result.attempts,
        "error": result.error,
        "retry_at": result.retry_at and result.retry_at.isoformat(),
        "attempted": result.attempted,
    }
