"""Reads the events of a workspace."""

from collections.abc import Sequence
from functools import cached_property

from evershell.core import errors
from evershell.core.event import Event, EventBatch
from evershell.store.part import Part
from evershell.store.pool import fetch_all
from evershell.store.rows import (
    event_of,
)
from evershell.store.shared_reads import SharedReads
from evershell.store.statements import statements

# A batch ends once it has this size, because it stays in memory until its watcher reads it. The
# last event of a batch may have up to 4 MiB.
MAX_BATCH_BYTES = 256 * 2**10
# The same for a page of a list, which its caller gets in one message.
_MAX_PAGE_BYTES = 2**20


def payload_bytes(of: str) -> str:
    """SQL that estimates the size of an event's payload, in bytes, without reading the payload.

    The size of a compressed payload is known only after decompression, so a compressed payload
    counts as if it were compressed to a 16th.
    """
    payload = f"{of}payload"
    factor = f"CASE WHEN pg_column_compression({payload}) IS NULL THEN 1 ELSE 16 END"
    return f"pg_column_size({payload}) * {factor}"


SQL = statements(
    "events",
    max_batch_bytes=MAX_BATCH_BYTES,
    max_page_bytes=_MAX_PAGE_BYTES,
    payload_bytes=payload_bytes(""),
)

# A `seq`, a limit, and a workspace id.
_Place = tuple[int, int, str]


class Events(Part):
    """Implements the lists of events of core.ports.Workspaces."""

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> EventBatch:
        # Watchers that wait for the same events share a read.
        events = await self._event_reads((after_seq, limit, workspace_id))
        if events is None:
            raise errors.workspace_not_found(workspace_id)
        return events

    @cached_property
    def _event_reads(self) -> SharedReads[_Place, EventBatch | None]:
        return SharedReads(self._read_events, at_once=max(1, self._pool.others.size // 4))

    async def _read_events(self, place: _Place) -> EventBatch | None:
        after_seq, limit, workspace_id = place
        rows = await fetch_all(
            self._pool.others,
            SQL.list_events,
            workspace_id=workspace_id,
            after_seq=after_seq,
            limit=limit,
        )
        return EventBatch(event_of(row) for row in rows if row.seq is not None) if rows else None

    async def list_last_events(
        self, workspace_id: str, before_seq: int, limit: int
    ) -> tuple[Sequence[Event], bool]:
        rows = await fetch_all(
            self._pool.lists,
            SQL.list_last_events,
            workspace_id=workspace_id,
            before_seq=before_seq,
            limit=limit,
        )
        events = [event_of(row) for row in rows[:limit]]
        return events, bool(rows) and rows[0].found > len(events)
