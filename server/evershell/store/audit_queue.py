"""Stores entries of the audit log in the background, so that no call waits for them."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import psycopg
import structlog

from evershell.core.audit_entry import AuditEntry
from evershell.core.errors import UnavailableError

# An entry is stored within a second.
FLUSH_SECONDS = 0.5
# A call that was given up may still be committing its change and its entry. The database ends its
# statement before this time is over.
UNCERTAIN_SECONDS = 10.0
_MAX_BATCH = 500
_MAX_ENTRIES = 10_000

Write = Callable[[Sequence[AuditEntry]], Awaitable[None]]

_log = structlog.get_logger()


class AuditQueue:
    """Implements api.interceptors.auditing.Queue. Stores while `run` runs."""

    def __init__(self, write: Write, lost: Callable[[int], None] = lambda count: None) -> None:
        """Calls `lost` with the number of entries that cannot be stored."""
        self._write = write
        self._lost = lost
        self._lost_since_flush = 0
        self._entries: deque[AuditEntry] = deque()
        # Each with the time from which it may be stored, in seconds of a monotonic clock.
        self._uncertain: deque[tuple[float, AuditEntry]] = deque()

    def put(self, entry: AuditEntry, *, uncertain: bool) -> None:
        """Stores the entry soon. If `uncertain`, only if the call itself has not stored it."""
        if len(self._entries) + len(self._uncertain) >= _MAX_ENTRIES:
            self.lose()
        elif uncertain:
            self._uncertain.append((time.monotonic() + UNCERTAIN_SECONDS, entry))
        else:
            self._entries.append(entry)

    def lose(self) -> None:
        """Counts an entry that is not stored."""
        self._lost_since_flush += 1

    async def run(self) -> None:
        """Stores the entries until it is cancelled, and then the rest."""
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                await self.flush()
        finally:
            self._entries.extend(entry for _, entry in self._uncertain)
            self._uncertain.clear()
            if not await self.flush():
                self._lost_since_flush += len(self._entries)
            self._report_lost()

    async def flush(self) -> bool:
        """Stores all entries that may be stored. Returns False if the database did not answer."""
        self._report_lost()
        now = time.monotonic()
        while self._uncertain and self._uncertain[0][0] <= now:
            self._entries.append(self._uncertain.popleft()[1])
        while self._entries:
            batch = [self._entries[index] for index in range(min(_MAX_BATCH, len(self._entries)))]
            try:
                await self._store(batch)
            except UnavailableError as error:
                _log.warning("audit_not_stored", error=str(error), entries=len(self._entries))
                return False
            for _ in batch:
                self._entries.popleft()
        return True

    async def _store(self, batch: Sequence[AuditEntry]) -> None:
        """Stores the batch, without the entries that the database refuses."""
        try:
            await self._write(batch)
        except psycopg.Error as error:
            if len(batch) > 1:
                for entry in batch:
                    await self._store([entry])
            else:
                _log.error("audit_entry_refused", error=str(error).strip(), rpc=batch[0].rpc)
                self.lose()

    def _report_lost(self) -> None:
        if self._lost_since_flush:
            _log.error("audit_entries_lost", entries=self._lost_since_flush)
            self._lost(self._lost_since_flush)
            self._lost_since_flush = 0
