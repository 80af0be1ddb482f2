"""Reads the log for webhooks, claims the deliveries that are due, and records their results.

The statements that claim deliveries and record results skip locked rows, so they wait for no other
transaction. If a result cannot be recorded at once, it is recorded
later. If it is not recorded before the lease ends, the delivery is claimed again, and its events
are sent twice.
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
from evershell.features.webhooks.rules import (
    AttemptResult,
    ClaimedDelivery,
    DeliveryCounts,
    DeliveryKey,
)
from evershell.features.webhooks.store import COLUMNS, webhook_of
from evershell.store.event_log import Settled
from evershell.store.pool import Pool, connected, fetch_one
from evershell.store.rows import event_of
from evershell.store.statements import statements

# How long a claim lasts if no result is recorded.
LEASE_SECONDS = 60.0
# The pause before the log is read again, if another process reads, or if the next event is not
# settled yet.
_READ_AGAIN_SECONDS = 0.1
# A claim has at most this many deliveries for one receiver.
MAX_OF_RECEIVER = 100
# A claim has at most this many events for one delivery.
_MAX_EVENTS = 4
# The maximum size of an event that is read with its claim: a claim may have thousands of events.
# Larger events are read one by one when they are sent. So are compressed events, because their size
# is known only after decompression.
_MAX_PAYLOAD_BYTES = 8_192
# A claim looks at up to _MAX_RECEIVERS receivers with pending deliveries. For each organization, it
# claims deliveries to at most MAX_RECEIVERS_OF_ORG of these receivers.
_MAX_RECEIVERS = 200
MAX_RECEIVERS_OF_ORG = 16
# How long deliveries are kept after they have succeeded or failed.
_KEPT = timedelta(days=30)
_MAX_PRUNED = 1_000

SQL = statements(
    "deliveries",
    __package__,
    webhook=lambda of: ", ".join(f"{of}{column} AS webhook_{column}" for column in COLUMNS),
    max_of_receiver=MAX_OF_RECEIVER,
    max_events=_MAX_EVENTS,
    max_payload_bytes=_MAX_PAYLOAD_BYTES,
    max_receivers=_MAX_RECEIVERS,
    max_receivers_of_org=MAX_RECEIVERS_OF_ORG,
    max_pruned=_MAX_PRUNED,
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The result of a claim."""

    deliveries: Sequence[ClaimedDelivery]
    # Whether the claim has reached the last receiver. If so, the next claim begins with the first.
    has_wrapped: bool
    # Whether deliveries of deleted webhooks were removed instead of claimed. If so, more deliveries
    # may be due.
    has_removed: bool


@dataclass(frozen=True, slots=True)
class Recorded:
    """Which results were recorded."""

    keys: Collection[DeliveryKey]
    # Whether some of the deliveries are due again at once.
    has_more: bool


class WebhookDeliveries:
    """Claims deliveries for this process. Every method may raise UnavailableError."""

    def __init__(self, pool: Pool, clock: Clock, claim: str) -> None:
        """`claim` identifies the claims of this process among the claims of all processes."""
        self._pool = pool
        self._clock = clock
        self._claim = claim
        # The last receiver that was looked at. The next claim begins after it.
        self._after = ("", "")
        self._settled = Settled()

    async def read_log(self) -> float | None:
        """Records the deliveries of new events.

        Returns after how many seconds there may be more to read; None if everything was read. If
        another process reads at the moment, reads nothing.
        """
        async with connected(self._pool) as connection, connection.transaction():
            reader: Any = await (
                await connection.execute(SQL.become_reader, prepare=True)
            ).fetchone()
            if not reader.is_reader:
                return _READ_AGAIN_SECONDS
            read: Any = await (await connection.execute(SQL.read_position, prepare=True)).fetchone()
            position, is_last, _ = await self._settled.after(connection, read.position)
            if position > read.position:
                events = {"after": read.position, "position": position, "now": self._clock()}
                await connection.execute(SQL.record_events, events, prepare=True)
                await connection.execute(SQL.set_position, {"position": position}, prepare=True)
        if is_last:
            return None
        return 0.0 if position > read.position else _READ_AGAIN_SECONDS

    async def claim(self, busy: Collection[tuple[str, str]], full_orgs: Collection[str]) -> Claimed:
        """Claims due deliveries. Skips receivers in `busy` and organizations in `full_orgs`."""
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
            cursor = await connection.execute(SQL.claim, parameters, prepare=True, binary=True)
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
            place = {"workspace_id": workspace_id, "seq": seq}
            cursor = await connection.execute(SQL.read_event, place, binary=True)
            row = await cursor.fetchone()
        return None if row is None else event_of(row)

    async def record(self, results: Sequence[AttemptResult]) -> Recorded:
        """Records the results of claims of this process.

        Disables the webhooks of results that demand it. Leaves out a result if the row of its
        delivery is locked, or if another process has claimed the delivery since the lease ended.
        """
        parameters = {
            "results": Json([_result_json(each) for each in results]),
            "claim": self._claim,
            "now": self._clock(),
        }
        unwanted = [each.key.webhook_id for each in results if each.disables_webhook]
        async with connected(self._pool) as connection:
            if unwanted:
                disabled = {"ids": unwanted, "now": parameters["now"]}
                await connection.execute(SQL.disable_webhooks, disabled)
            cursor = await connection.execute(SQL.record, parameters, prepare=True, binary=True)
            rows = await cursor.fetchall()
        keys = {DeliveryKey(row.workspace_id, row.task_id, row.webhook_id) for row in rows}
        return Recorded(keys, any(row.has_more for row in rows))

    async def prune(self) -> None:
        """Removes deliveries and webhooks that are no longer needed, a limited number per call.

        These are failed deliveries of deleted webhooks, deliveries that ended long ago, and
        webhooks of tasks that ended long ago.
        """
        before = {"before": self._clock() - _KEPT}
        async with connected(self._pool) as connection:
            await connection.execute(SQL.prune_failed)
            await connection.execute(SQL.prune_settled, before)
            await connection.execute(SQL.prune_webhooks, before)

    async def reseal(
        self, key_id: bytes, seal_again: Callable[[bytes, str], bytes], after_id: str
    ) -> str | None:
        """Seals again, with `seal_again`, secrets that were sealed with keys other than `key_id`.

        Each call handles up to 100 webhooks, in the order of their ids, from `after_id` on. Returns
        the last of these ids; None if no webhook was left. Leaves out webhooks for which
        `seal_again` raises UnavailableError.
        """
        last_id: str | None = None
        async with connected(self._pool) as connection:
            parameters = {"key_id": key_id, "length": len(key_id), "after_id": after_id}
            cursor = await connection.execute(SQL.list_sealed_with_others, parameters, binary=True)
            for row in await cursor.fetchall():
                old = row._asdict()
                last_id = webhook_id = old.pop("id")
                try:
                    again = {
                        f"new_{name}": each and seal_again(each, webhook_id)
                        for name, each in old.items()
                    }
                except UnavailableError:
                    continue
                await connection.execute(SQL.reseal, {"webhook_id": webhook_id} | old | again)
        return last_id


async def webhooks_exist(pool: Pool) -> bool:
    """Whether there are webhooks or deliveries. Raises UnavailableError."""
    async with connected(pool) as connection:
        row = await (await connection.execute(SQL.any_exist, prepare=True)).fetchone()
    return row is not None and bool(row.exist)


async def count_deliveries(pool: Pool) -> DeliveryCounts:
    """Counts pending and failed deliveries of all organizations. Raises UnavailableError."""
    row = await fetch_one(pool, SQL.count_deliveries)
    return DeliveryCounts(row.pending, row.failed, row.oldest)


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
