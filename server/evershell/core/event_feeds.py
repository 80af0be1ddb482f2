"""The new events of watched workspaces. All watchers of a workspace share one feed.

A feed reads each new event from the log once and passes it to all its watchers, which only have to
send it. If the feed read an event before a watcher joined, or while the watcher was busy with
earlier events, the watcher itself reads the event from the log.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime

from evershell.core.event import EventBatch
from evershell.core.ports import Clock, Subscription, Subscriptions, Workspaces

HEARTBEAT_SECONDS = 4.0
# The maximum number of events that are read at a time.
BATCH_EVENTS = 100
# How many watchers are woken at a time. Other calls are served before the next group is woken.
_WOKEN_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent when the log has had no new event for HEARTBEAT_SECONDS, and before the feed ends."""

    time: datetime
    # The position of the last event in the log; 0 if the log is empty.
    seq: int


Message = EventBatch | Heartbeat


class FeedEndedError(Exception):
    """The feed has ended because the server is shutting down."""


class Watcher:
    """Receives the messages of a feed until `leave` is called."""

    __slots__ = ("_feed", "_message", "_woken", "missed_seq")

    def __init__(self, feed: "_Feed", missed_seq: int) -> None:
        self._feed = feed
        # The watcher must read the events up to this `seq` from the log, because the feed does not
        # send them.
        self.missed_seq = missed_seq
        # The message that the watcher has not taken yet.
        self._message: Message | None = None
        # Completed when the feed sends a message or fails; None while the watcher does not wait.
        self._woken: asyncio.Future[None] | None = None

    async def receive(self) -> Message | None:
        """Waits for the next message. Returns None if the watcher must read the log.

        Raises FeedEndedError, or the error with which the feed failed to read the log.
        """
        if self._message is None:
            if self._feed.error is not None:
                raise self._feed.error.with_traceback(None)
            self._woken = asyncio.get_running_loop().create_future()
            try:
                await self._woken
            finally:
                self._woken = None
        message, self._message = self._message, None
        return message

    def leave(self) -> None:
        """Stops watching. Ends the feed if nobody else watches the workspace."""
        self._feed.leave(self)

    def send(self, message: Message, last_seq: int) -> None:
        """Gives the watcher the message.

        If the watcher has not taken the previous message yet, it must read the log up to
        `last_seq`.
        """
        if self._message is None:
            self._message = message
        else:
            self._message, self.missed_seq = None, last_seq
        self.wake()

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class EventFeeds:
    """The feeds of this process, one for each watched workspace."""

    def __init__(self, store: Workspaces, subscriptions: Subscriptions, clock: Clock) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._clock = clock
        self._feeds: dict[str, _Feed] = {}

    def join(self, workspace_id: str, last_seq: int) -> Watcher:
        """Returns a new watcher. Call its `leave` at the end.

        `last_seq` is the `last_seq` of the workspace, read before this call.
        """
        feed = self._feeds.get(workspace_id)
        if feed is None:
            feed = _Feed(workspace_id, last_seq, self._store, self._clock, self._forget)
            self._feeds[workspace_id] = feed
            feed.start(self._subscriptions)
        return feed.join()

    def _forget(self, feed: "_Feed") -> None:
        if self._feeds.get(feed.workspace_id) is feed:
            del self._feeds[feed.workspace_id]


class _Feed:
    """Follows the log of a workspace as long as it has watchers."""

    __slots__ = (
        "_clock",
        "_forget",
        "_last_seq",
        "_store",
        "_task",
        "_watchers",
        "error",
        "workspace_id",
    )

    def __init__(
        self,
        workspace_id: str,
        last_seq: int,
        store: Workspaces,
        clock: Clock,
        forget: "Callable[[_Feed], None]",
    ) -> None:
        self.workspace_id = workspace_id
        # Why the feed has ended; None while it runs.
        self.error: Exception | None = None
        # The position of the last event that was read. The watchers receive all later events.
        self._last_seq = last_seq
        self._store = store
        self._clock = clock
        self._forget = forget
        self._watchers: dict[Watcher, None] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, subscriptions: Subscriptions) -> None:
        # An empty context: the deadline of the first watcher's call must not apply to the others.
        self._task = asyncio.create_task(self._run(subscriptions), context=Context())

    def join(self) -> Watcher:
        watcher = Watcher(self, self._last_seq)
        self._watchers[watcher] = None
        return watcher

    def leave(self, watcher: Watcher) -> None:
        del self._watchers[watcher]
        if not self._watchers and self._task is not None:
            self._forget(self)
            self._task.cancel()

    async def _run(self, subscriptions: Subscriptions) -> None:
        try:
            # Subscribes before the first read, so that no commit between a read and the wait is
            # missed.
            async with subscriptions.subscribe(self.workspace_id) as subscription:
                await self._follow(subscription)
        except Exception as error:  # noqa: BLE001 - raised in the watchers
            self.error = error
            self._forget(self)
            for watcher in self._watchers:
                watcher.wake()

    async def _follow(self, subscription: Subscription) -> None:
        quiet_since = self._clock()
        while True:
            events = await self._store.list_events(self.workspace_id, self._last_seq, BATCH_EVENTS)
            if events:
                self._last_seq = events[-1].seq
                await self._send(events)
                quiet_since = self._clock()
                continue
            # Frees the memory while the log is quiet.
            del events
            now = self._clock()
            # A correction may set the clock of the service back.
            quiet_since = min(quiet_since, now)
            quiet_seconds = (now - quiet_since).total_seconds()
            if quiet_seconds >= HEARTBEAT_SECONDS:
                quiet_since, quiet_seconds = self._clock(), 0.0
                await self._send(Heartbeat(quiet_since, self._last_seq))
            if not await subscription.wait(HEARTBEAT_SECONDS - quiet_seconds):
                await self._send(Heartbeat(self._clock(), self._last_seq))
                raise FeedEndedError

    async def _send(self, message: Message) -> None:
        watchers = tuple(self._watchers)
        for first in range(0, len(watchers), _WOKEN_AT_ONCE):
            for watcher in watchers[first : first + _WOKEN_AT_ONCE]:
                watcher.send(message, self._last_seq)
            await asyncio.sleep(0)
