"""Use case: watch the event log of a workspace."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from evershell.server.core.caller import Caller
from evershell.server.core.errors import Failure
from evershell.server.core.event import Event
from evershell.server.core.ports import Clock, Store, Wakeups
from evershell.server.core.validation import Fields

HEARTBEAT_SECONDS = 15.0
# The maximum number of events that are buffered for one consumer.
BATCH_EVENTS = 100


Encoded = TypeVar("Encoded")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent when the log had no new event for HEARTBEAT_SECONDS."""

    time: datetime
    seq: int


async def watch_events(
    caller: Caller,
    workspace_id: str,
    after_seq: int,
    store: Store,
    wakeups: Wakeups,
    clock: Clock,
    encode: Callable[[Sequence[Event]], Sequence[Encoded]],
) -> AsyncIterator[Encoded | Heartbeat]:
    """Yields the events after `after_seq`, then new events as they are committed.

    `encode` gets each batch once it is read, and returns what is yielded for each of its events. A
    whole batch takes much less time than the same events one by one between other work. The events
    themselves are not kept.

    Ends only when the consumer or the server stops. A batch is read when the consumer has taken the
    one before it, so a slow consumer buffers at most one batch. Raises Failure: permission_denied,
    workspace_not_found, unavailable (the server drains); UnavailableError.
    """
    fields = Fields()
    fields.identifier("workspace_id", workspace_id)
    fields.between("after", after_seq, 0, 2**63 - 1)
    fields.check()
    permission = caller.permission("workspace:read")
    permission.check(await store.get_workspace(workspace_id), workspace_id)
    seq = after_seq
    # Subscribes before the first read, so that a commit between a read and the wait is not missed.
    async with wakeups.subscribe(workspace_id) as wakeup:
        quiet_since = clock()
        while True:
            seq, batch = await _next_batch(workspace_id, seq, store, encode)
            for item in batch:
                yield item
            if batch:
                quiet_since = clock()
                continue
            quiet_seconds = (clock() - quiet_since).total_seconds()
            if quiet_seconds >= HEARTBEAT_SECONDS:
                quiet_since = clock()
                yield Heartbeat(quiet_since, seq)
            elif not await wakeup.wait(HEARTBEAT_SECONDS - quiet_seconds):
                # The heartbeat precedes the failure, because a failure that follows a message is
                # sent within the stream, as its last message.
                yield Heartbeat(clock(), seq)
                message = f"The server is shutting down. Watch again with after={seq}."
                raise Failure("unavailable", message, retry_after_seconds=1)


async def _next_batch(
    workspace_id: str,
    after_seq: int,
    store: Store,
    encode: Callable[[Sequence[Event]], Sequence[Encoded]],
) -> tuple[int, Sequence[Encoded]]:
    """The next events, encoded, and the `seq` of the last one. Empty at the end of the log."""
    events = await store.list_events(workspace_id, after_seq, BATCH_EVENTS)
    return (events[-1].seq, encode(events)) if events else (after_seq, ())
