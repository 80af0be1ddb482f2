"""The new events of what is watched. Watchers of the same events share one feed.

A feed reads each new event from the log once and passes it to all its watchers, which only have to
send it. If the feed read an event before a watcher joined, or while the watcher was busy with
earlier events, the watcher itself reads the event from the log.

A watched workspace has a feed of its own, which is woken by the changes of the workspace. The feeds
of organizations share one tail: it reads the log of all workspaces several times a second, and
passes each feed its part.

A position in the log of a workspace is a `seq`. A position in the log of all workspaces is the
`position` of an event.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime

from evershell.core.errors import UnavailableError
from evershell.core.event import EventBatch, LogScope
from evershell.core.ports import Clock, EventLog, LogEnd, Store, Subscription, Subscriptions

HEARTBEAT_SECONDS = 4.0
# The maximum number of events that are read at a time.
BATCH_EVENTS = 100
# The pause between two reads of the log of all workspaces.
TAIL_SECONDS = 0.25
# The same while the next event is not settled yet.
_BLOCKED_SECONDS = 0.05
# The tail, and with it the watch of each organization, ends after this many failed reads in a row.
_MAX_FAILURES = 3
# How many watchers are woken at a time. Other calls are served before the next group is woken.
_WOKEN_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent when a feed has had no new event for HEARTBEAT_SECONDS, and before the feed ends."""

    time: datetime
    # The position up to which the log was read; 0 if the log is empty.
    position: int


Message = EventBatch | Heartbeat


class FeedEndedError(Exception):
    """The feed has ended because the server is shutting down."""


class Watcher:
    """Receives the messages of a feed until `leave` is called."""

    __slots__ = ("_feed", "_has_missed", "_message", "_woken", "missed")

    def __init__(self, feed: "_Feed", missed: int) -> None:
        self._feed = feed
        # The watcher must read the events up to this position from the log before it calls
        # `receive`, because the feed does not send them. The position grows if the watcher is slow.
        self.missed = missed
        # Whether `missed` has grown since the last `receive`.
        self._has_missed = False
        # The message that the watcher has not taken yet.
        self._message: Message | None = None
        # Completed when the feed sends a message or fails; None while the watcher does not wait.
        self._woken: asyncio.Future[None] | None = None

    async def receive(self) -> Message | None:
        """Waits for the next message. Returns None if the watcher must read the log.

        Raises FeedEndedError, or the error with which the feed failed to read the log.
        """
        if self._message is None and not self._has_missed:
            self.raise_error()
            self._woken = asyncio.get_running_loop().create_future()
            try:
                await self._woken
            finally:
                self._woken = None
        message, self._message = self._message, None
        self._has_missed = False
        return message

    def raise_error(self) -> None:
        """Raises the error with which the feed has failed, if it has."""
        if self._feed.error is not None:
            raise self._feed.error.with_traceback(None)

    def leave(self) -> None:
        """Stops watching. Ends the feed if it has no other watcher."""
        self._feed.leave(self)

    def send(self, message: Message, position: int) -> None:
        """Gives the watcher the message.

        If the watcher has not taken the previous message yet, or has not read what it has missed,
        it must read the log up to `position`.
        """
        if self._message is None and not self._has_missed:
            self._message = message
            self.wake()
        else:
            self.miss(position)

    def miss(self, position: int) -> None:
        """Makes the watcher read the log up to `position`."""
        self._message, self.missed, self._has_missed = None, position, True
        self.wake()

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class EventFeeds:
    """The feeds of this process: one for each watched workspace, and one for each LogScope."""

    def __init__(self, store: Store, subscriptions: Subscriptions, clock: Clock) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._clock = clock
        # By workspace id.
        self._readers: dict[str | None, _WorkspaceReader] = {}
        self._tail: _Tail | None = None

    def join(self, workspace_id: str, last_seq: int) -> Watcher:
        """Returns a new watcher. Call its `leave` at the end.

        `last_seq` is the `last_seq` of the workspace, read before this call.
        """
        reader = self._readers.get(workspace_id)
        if reader is None:
            reader = _WorkspaceReader(workspace_id, last_seq, self._store, self._clock)
            self._readers[workspace_id] = reader
            reader.start(self._subscriptions, self._forget)
        return reader.join()

    async def join_log(self, scope: LogScope) -> Watcher:
        """Returns a new watcher of the log of all workspaces. Call its `leave` at the end.

        All events up to `missed` of the watcher can be read from the log. Raises FeedEndedError, or
        the error with which the tail failed to read the log.
        """
        tail = self._tail or _Tail(self._store, self._clock)
        watcher = tail.join(scope)
        if self._tail is None:
            self._tail = tail
            tail.start(self._subscriptions, self._forget)
        await tail.begin(watcher)
        return watcher

    def _forget(self, reader: "_Reader") -> None:
        if self._tail is reader:
            self._tail = None
        elif self._readers.get(reader.workspace_id) is reader:
            del self._readers[reader.workspace_id]


class _Feed:
    """Passes messages to its watchers."""

    __slots__ = ("_clock", "_end", "_quiet_since", "_watchers", "error")

    def __init__(self, clock: Clock, end: Callable[[], None]) -> None:
        """`end` is called when the last watcher has left."""
        self._clock = clock
        self._end = end
        self._watchers: dict[Watcher, None] = {}
        # When the last message was sent.
        self._quiet_since = clock()
        # Why the feed has ended; None while it runs.
        self.error: Exception | None = None

    def join(self, missed: int) -> Watcher:
        watcher = Watcher(self, missed)
        self._watchers[watcher] = None
        return watcher

    def leave(self, watcher: Watcher) -> None:
        del self._watchers[watcher]
        if not self._watchers:
            self._end()

    async def send(self, message: Message, position: int) -> None:
        """Sends the message to all watchers. `position` is the last position that was read."""
        watchers = tuple(self._watchers)
        for first in range(0, len(watchers), _WOKEN_AT_ONCE):
            for watcher in watchers[first : first + _WOKEN_AT_ONCE]:
                watcher.send(message, position)
            await asyncio.sleep(0)
        self._quiet_since = self._clock()

    async def beat(self, position: int) -> float:
        """Sends a heartbeat if one is due. Returns the seconds until the next one."""
        now = self._clock()
        # A correction may set the clock of the service back.
        self._quiet_since = min(self._quiet_since, now)
        quiet_seconds = (now - self._quiet_since).total_seconds()
        if quiet_seconds >= HEARTBEAT_SECONDS:
            quiet_seconds = 0.0
            await self.send(Heartbeat(now, position), position)
        return HEARTBEAT_SECONDS - quiet_seconds

    async def end(self, position: int) -> None:
        """Sends a last heartbeat: after a first message, a stream can report its failure."""
        await self.send(Heartbeat(self._clock(), position), position)

    def miss(self, position: int) -> None:
        """Makes all watchers read the log up to `position`."""
        for watcher in self._watchers:
            watcher.miss(position)

    def fail(self, error: Exception) -> None:
        self.error = error
        for watcher in self._watchers:
            watcher.wake()


class _Reader(ABC):
    """Reads a log for its feeds, in an asyncio task, until it is stopped or fails."""

    __slots__ = ("_forget", "_task")

    # The workspace whose changes wake the reader; None for the tail, which only wakes at the end.
    workspace_id: str | None = None
    _task: asyncio.Task[None]
    _forget: "Callable[[_Reader], None]"

    def start(self, subscriptions: Subscriptions, forget: "Callable[[_Reader], None]") -> None:
        """`forget` is called when the reader has ended."""
        self._forget = forget
        # An empty context: the deadline of the first watcher's call must not apply to the others.
        self._task = asyncio.create_task(self._run(subscriptions), context=Context())

    def stop(self) -> None:
        self._forget(self)
        self._task.cancel()

    async def _run(self, subscriptions: Subscriptions) -> None:
        try:
            # Subscribes before the first read, so that no commit between a read and the wait is
            # missed.
            async with subscriptions.subscribe(self.workspace_id) as subscription:
                await self._follow(subscription)
        except Exception as error:  # noqa: BLE001 - raised in the watchers
            self._forget(self)
            self._fail(error)

    @abstractmethod
    async def _follow(self, subscription: Subscription) -> None:
        """Passes events to the feeds. Raises FeedEndedError when the server is shutting down."""

    @abstractmethod
    def _fail(self, error: Exception) -> None:
        """Raises the error in all watchers."""


class _WorkspaceReader(_Reader):
    """Follows the log of a workspace as long as it has watchers."""

    __slots__ = ("_feed", "_last_seq", "_store", "workspace_id")

    def __init__(self, workspace_id: str, last_seq: int, store: Store, clock: Clock) -> None:
        self.workspace_id = workspace_id
        self._store = store
        self._feed = _Feed(clock, self.stop)
        # The `seq` of the last event that was read. The watchers receive all later events.
        self._last_seq = last_seq

    def join(self) -> Watcher:
        return self._feed.join(self._last_seq)

    async def _follow(self, subscription: Subscription) -> None:
        assert self.workspace_id is not None
        while True:
            events = await self._store.list_events(self.workspace_id, self._last_seq, BATCH_EVENTS)
            if events:
                self._last_seq = events[-1].seq
                await self._feed.send(events, self._last_seq)
                # Frees the memory while the log is quiet.
                del events
                continue
            if not await subscription.wait(await self._feed.beat(self._last_seq)):
                await self._feed.end(self._last_seq)
                raise FeedEndedError

    def _fail(self, error: Exception) -> None:
        self._feed.fail(error)


class _Tail(_Reader):
    """Follows the log of all workspaces as long as one of its feeds has watchers."""

    def __init__(self, store: EventLog, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._feeds: dict[LogScope, _Feed] = {}
        # Where the tail has begun, and how far it has read.
        self._began = self._position = 0
        # Set once the tail has begun, or has failed.
        self._is_begun = asyncio.Event()

    def join(self, scope: LogScope) -> Watcher:
        feed = self._feeds.get(scope)
        if feed is None:
            feed = self._feeds[scope] = _Feed(self._clock, lambda: self._drop(scope))
        return feed.join(self._position)

    async def begin(self, watcher: Watcher) -> None:
        """Waits until the tail has begun. Raises the error with which it has failed."""
        try:
            await self._is_begun.wait()
            watcher.raise_error()
        except BaseException:
            watcher.leave()
            raise
        watcher.missed = max(watcher.missed, self._began)

    def _drop(self, scope: LogScope) -> None:
        del self._feeds[scope]
        if not self._feeds:
            self.stop()

    async def _follow(self, subscription: Subscription) -> None:
        end = await self._store.find_log_end()
        self._began = self._position = end.position
        self._is_begun.set()
        failures = 0
        while True:
            try:
                pause_seconds = await self._read(end)
                failures = 0
            except UnavailableError:
                pause_seconds, failures = TAIL_SECONDS, failures + 1
                if failures == _MAX_FAILURES:
                    raise
            for feed in tuple(self._feeds.values()):
                await feed.beat(self._position)
            if not await subscription.wait(pause_seconds):
                for feed in tuple(self._feeds.values()):
                    await feed.end(self._position)
                raise FeedEndedError

    async def _read(self, end: LogEnd) -> float:
        """Reads the next events, and passes them to their feeds.

        Returns the pause before the next read, in seconds.
        """
        is_last = False
        if self._position == end.position:
            is_last = await end.advance()
            if self._position == end.position:
                return TAIL_SECONDS if is_last else _BLOCKED_SECONDS
        scopes = frozenset(self._feeds)
        entries, self._position = await self._store.list_log_events(
            scopes, self._position, end.position, BATCH_EVENTS, at_once=True
        )
        batches: defaultdict[LogScope, EventBatch] = defaultdict(EventBatch)
        for entry in entries:
            for scope in {LogScope(entry.org_id), LogScope(entry.org_id, entry.creator_id)}:
                batches[scope].append(entry.event)
        for scope, feed in tuple(self._feeds.items()):
            if scope not in scopes:
                # The feed began during the read.
                feed.miss(self._position)
            elif scope in batches:
                await feed.send(batches[scope], self._position)
        return TAIL_SECONDS if is_last and self._position == end.position else 0.0

    def _fail(self, error: Exception) -> None:
        self._is_begun.set()
        for feed in self._feeds.values():
            feed.fail(error)
