"""Subscriptions within one process."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class MemorySubscription:
    """Implements core.ports.Subscription."""

    def __init__(self, draining: asyncio.Event) -> None:
        self._draining = draining
        self._changed = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> bool:
        if not self._draining.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._changed.wait()
            self._changed.clear()
        return not self._draining.is_set()

    def wake(self) -> None:
        """Ends the current wait, or else the next one at once."""
        self._changed.set()


class MemorySubscriptions:
    """Implements core.ports.Subscriptions. The store calls its `publish`."""

    def __init__(self) -> None:
        self._draining = asyncio.Event()
        self._subscriptions: defaultdict[str | None, set[MemorySubscription]] = defaultdict(set)

    def publish(self, workspace_id: str, *, watched: bool = False, reconcile: bool = False) -> None:
        """Wakes the workspace's subscribers. Implements Publish."""
        for subscription in self._subscriptions[workspace_id]:
            subscription.wake()

    def has_subscribers(self, workspace_id: str | None) -> bool:
        """Whether anyone waits for a change of the workspace."""
        return bool(self._subscriptions[workspace_id])

    def drain(self) -> None:
        """Ends every wait, now and in the future."""
        self._draining.set()
        for subscribers in self._subscriptions.values():
            for subscription in subscribers:
                subscription.wake()

    @asynccontextmanager
    async def subscribe(self, workspace_id: str | None) -> AsyncIterator[MemorySubscription]:
        subscription = MemorySubscription(self._draining)
        self._subscriptions[workspace_id].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[workspace_id].discard(subscription)
