"""Use case: watch the event log of a workspace."""

from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple, Protocol

from evershell.core import errors
from evershell.core.caller import Caller
from evershell.core.errors import Failure
from evershell.core.event import Encoded, Event
from evershell.core.event_feeds import (
    BATCH_EVENTS,
    EventFeeds,
    FeedEndedError,
    Heartbeat,
    Message,
    Watcher,
)
from evershell.core.ports import Workspaces
from evershell.core.validation import Fields
from evershell.core.workspace import WorkspaceStatus


def watch_events(
    caller: Caller,
    workspace_id: str,
    after_seq: int,
    store: Workspaces,
    feeds: EventFeeds,
    encode: Callable[[Sequence[Event]], Sequence[Encoded]],
    encode_heartbeat: Callable[[Heartbeat], Encoded],
    opening: Sequence[Encoded] = (),
) -> AsyncIterator[Encoded]:
    """Yields the events after `after_seq`, then new events as they are committed, and heartbeats.

    If `after_seq` is 0, begins with the first event in the log.

    Yields `opening` first, but not before the first events have been read from the log. So a watch
    that is refused yields nothing.

    `encode` returns what to yield for each event of a batch. It is called once for each batch, even
    if many watchers share the same `encode`.

    Ends only when the consumer or the server stops, or the workspace is deleted. For a slow
    consumer, at most its current batch and the next one are buffered.

    Raises Failure: validation_error (`after_seq` is beyond the last event, or events after it were
    removed), permission_denied, workspace_not_found, unavailable (the server drains);
    UnavailableError.
    """
    begin = partial(_begin, caller, workspace_id, after_seq, store, feeds)
    return follow(begin, encode, encode_heartbeat, opening)


class Log(Protocol):
    """The log that a watcher reads."""

    def position_of(self, event: Event) -> int: ...

    async def read(self, after: int, until: int) -> Message:
        """The next events after `after`, or none if there are none up to `until`.

        A heartbeat says that there are none up to its position.
        """

    async def check_next(self, after: int, first: int) -> None:
        """Raises Failure if a watcher must not go on from `after` to the position `first`."""


class Begun(NamedTuple):
    """A watch that has begun."""

    log: Log
    watcher: Watcher
    # The position after which the watch begins.
    after: int
    # Sent after the opening, if it is not None.
    heartbeat: Heartbeat | None = None


async def follow(
    begin: Callable[[], Awaitable[Begun]],
    encode: Callable[[Sequence[Event]], Sequence[Encoded]],
    encode_heartbeat: Callable[[Heartbeat], Encoded],
    opening: Sequence[Encoded],
) -> AsyncIterator[Encoded]:
    """Yields what watch_events describes, of any log. Raises the errors of `begin` and of the log.

    Also raises Failure unavailable when the server drains.
    """
    log, watcher, seq, heartbeat = await begin()
    # Frees memory: there may be thousands of streams, which may last for days.
    del begin
    try:
        if heartbeat is not None:
            opening = (*opening, encode_heartbeat(heartbeat))
        while True:
            missed_seq = watcher.missed
            if seq < missed_seq:
                received: Message | None = await log.read(seq, missed_seq)
                if not received:
                    await log.check_next(seq, missed_seq + 1)
                    seq = missed_seq
            elif opening:
                for item in opening:
                    yield item
                opening = ()
                # The watcher may have missed events while `opening` was sent, so this is checked
                # first.
                continue
            else:
                received = await watcher.receive()
            if isinstance(received, Heartbeat):
                # The caller may have seen later events, on another worker.
                seq = max(seq, received.position)
                for item in opening:
                    yield item
                opening = ()
                yield encode_heartbeat(Heartbeat(received.time, seq))
            elif received and seq < (last_seq := log.position_of(received[-1])):
                await log.check_next(seq, log.position_of(received[0]))
                first = bisect_right(received, seq, key=log.position_of)
                encoded = received.encoded(encode)
                # Frees the events while the consumer takes the encoded results.
                del received
                for item in opening:
                    yield item
                opening = ()
                for index in range(first, len(encoded)):
                    yield encoded[index]
                # Frees the memory while the log is quiet.
                del encoded
                seq = last_seq
    except FeedEndedError:
        message = f"The server is shutting down. Watch again with after={seq}."
        raise Failure("unavailable", message, retry_after_seconds=1) from None
    finally:
        watcher.leave()


async def _begin(
    caller: Caller, workspace_id: str, after_seq: int, store: Workspaces, feeds: EventFeeds
) -> Begun:
    """Begins the watch. Raises Failure if the caller may not watch."""
    fields = Fields()
    fields.identifier("workspace_id", workspace_id)
    fields.between("after", after_seq, 0, 2**63 - 1)
    fields.check()
    permission = caller.permission("workspace:read")
    # This read begins after the call, so it finds every event that the caller can have received.
    workspace = await store.get_workspace(workspace_id, caller.org_id)
    last_seq = permission.check(workspace, workspace_id).last_seq
    if after_seq > last_seq:
        raise errors.invalid(
            {"after": f"must be at most {last_seq}: the log ends with seq {last_seq}"}
        )
    log = _WorkspaceLog(workspace_id, store)
    return Begun(log, feeds.join(workspace_id, last_seq), after_seq)


class _WorkspaceLog:
    """Implements Log."""

    __slots__ = ("_store", "_workspace_id")

    position_of = staticmethod(attrgetter("seq"))

    def __init__(self, workspace_id: str, store: Workspaces) -> None:
        self._workspace_id = workspace_id
        self._store = store

    async def read(self, after: int, until: int) -> Message:
        return await self._store.list_events(self._workspace_id, after, BATCH_EVENTS)

    async def check_next(self, after_seq: int, first_seq: int) -> None:
        """Checks that no event between `after_seq` and `first_seq` was removed.

        Raises Failure: validation_error if an event was removed, workspace_not_found if the
        workspace is deleted.
        """
        if 0 < after_seq < first_seq - 1:
            workspace = await self._store.get_workspace(self._workspace_id)
            if workspace is None or workspace.status is WorkspaceStatus.DELETING:
                raise errors.workspace_not_found(self._workspace_id)
            first = f"the log now begins with seq {first_seq}"
            raise errors.invalid({"after": f"must be 0 or at least {first_seq - 1}: {first}"})
