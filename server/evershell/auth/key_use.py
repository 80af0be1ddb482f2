"""When each API key was last used.

A call only notes the time in memory. A background task stores the times of all keys once a minute,
in one statement.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

import structlog

STORE_INTERVAL_SECONDS = 60.0
# Bounds the memory while the database is away. Uses of further keys are not recorded.
_MAX_KEYS = 100_000

StoreUses = Callable[[Mapping[str, datetime]], Awaitable[None]]

_log = structlog.get_logger()


class KeyUse:
    """Records the time of the last use of each key."""

    def __init__(self, store_uses: StoreUses) -> None:
        """`store_uses` takes key ids with the time of their last use.

        If it raises, the times are stored a minute later.
        """
        self._store_uses = store_uses
        # In seconds since 1970.
        self._used: dict[str, float] = {}

    def record(self, key_id: str, now: float) -> None:
        """Notes that the key was used. `now` is in seconds since 1970."""
        if len(self._used) < _MAX_KEYS or key_id in self._used:
            self._used[key_id] = now

    async def run(self) -> None:
        """Stores the times every minute, until it is cancelled, and then once more."""
        try:
            while True:
                await asyncio.sleep(STORE_INTERVAL_SECONDS)
                await self.store()
        finally:
            await self.store()

    async def store(self) -> None:
        """Stores what was recorded since the last time."""
        if not self._used:
            return
        used, self._used = self._used, {}
        try:
            await self._store_uses(
                {key_id: datetime.fromtimestamp(at, UTC) for key_id, at in used.items()}
            )
        except Exception as error:  # noqa: BLE001 - e.g. a role that may not update keys
            _log.warning("key_use_not_stored", error=str(error), keys=len(used))
            # What was recorded meanwhile is newer.
            self._used = used | self._used
