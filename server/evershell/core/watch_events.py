"""Use case: watch the event log of a workspace."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import TypeVar

from evershell.core import errors
from evershell.core.caller import Caller
from evershell.core.errors import Failure
from evershell.core.event import Event
from evershell.core.ports import Clock, Store, Subscriptions
from evershell.core.validation import Fields
from evershell.core.workspace import WorkspaceStatus

HEARTBEAT_SECONDS = 15.0
# The maximum number of events that are buffered for one consumer.
BATCH_EVENTS = 100


Encoded = TypeVar("Encoded")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent when the log had no new event for HEARTBEAT_SECONDS."""

    time: datetime
    # That of the last event in the log; 0 if the log is empty.
    seq: int


async def watch_events(
    caller: Caller,
    workspace_id: str,
    after_seq: int,
    store: Store,
    subscriptions: Subscriptions,
    clock: Clock,
    encode: Callable[[Sequence[Event]], Sequence[Encoded]],
    encode_heartbeat: Callable[[Heartbeat], Encoded],
    opening: Sequence[Encoded] = (),
) -> AsyncIterator[Encoded]:
    """Yields the events after `after_seq`, then new events as they are committed, and heartbeats.

    With 0 for `after_seq`, begins with the first event there is.

    Yields `opening` before them, once the first events have been read: from then on, the watch can
    fail only because the database or the server ends.

    `encode` gets each batch once it is read, and returns what is yielded for each of its events. A
    whole batch takes much less time than the same events one by one between other work. The events
    themselves are not kept.

    Ends only when the consumer or the server stops, or the workspace is deleted. A batch is read
    when the consumer has taken the one before it, so a slow consumer buffers at most one batch.

    Raises Failure: validation_error (events after `after_seq` were removed), permission_denied,
    workspace_not_found, unavailable (the server drains); UnavailableError.
    """
    # A watcher may wait for events that are far ahead. Its position is then not in the log.
    last_seq = await _admit(caller, workspace_id, after_seq, store)
    seq, is_ahead = after_seq, after_seq > last_seq
    # A stream may last for days, and there may be thousands.
    del caller
    # Subscribes before the first read, so that a commit between a read and the wait is not missed.
    async with subscriptions.subscribe(workspace_id) as subscription:
        quiet_since = clock()
        while True:
            seq, batch = await _next_batch(workspace_id, seq, last_seq, store, encode)
            for item in chain(opening, batch):
                yield item
            opening = ()
            if batch:
                quiet_since, is_ahead = clock(), False
                continue
            quiet_seconds = (clock() - quiet_since).total_seconds()
            if quiet_seconds >= HEARTBEAT_SECONDS:
                quiet_since = clock()
                last_seq = await _last_seq(workspace_id, seq, is_ahead, store)
                yield encode_heartbeat(Heartbeat(quiet_since, last_seq))
            elif not await subscription.wait(HEARTBEAT_SECONDS - quiet_seconds):
                # The heartbeat precedes the failure, because a failure that follows a message is
                # sent within the stream, as its last message.
                last_seq = await _last_seq(workspace_id, seq, is_ahead, store)
                yield encode_heartbeat(Heartbeat(clock(), last_seq))
                message = f"The server is shutting down. Watch again with after={seq}."
                raise Failure("unavailable", message, retry_after_seconds=1)


async def _admit(caller: Caller, workspace_id: str, after_seq: int, store: Store) -> int:
    """The `seq` of the last event, if the caller may watch the workspace. Raises Failure."""
    fields = Fields()
    fields.identifier("workspace_id", workspace_id)
    fields.between("after", after_seq, 0, 2**63 - 1)
    fields.check()
    permission = caller.permission("workspace:read")
    workspace = await store.get_workspace(workspace_id, caller.org_id)
    return permission.check(workspace, workspace_id).last_seq


async def _next_batch(
    workspace_id: str,
    after_seq: int,
    last_seq: int,
    store: Store,
    encode: Callable[[Sequence[Event]], Sequence[Encoded]],
) -> tuple[int, Sequence[Encoded]]:
    """The next events, encoded, and the `seq` of the last one. Empty at the end of the log.

    `last_seq` is that of the workspace when the watch began. Raises Failure: validation_error if
    events after `after_seq` were removed, workspace_not_found if the workspace is deleted.
    """
    events = await store.list_events(workspace_id, after_seq, BATCH_EVENTS)
    seq = events[-1].seq if events else max(after_seq, last_seq)
    first_seq = events[0].seq if events else seq + 1
    if 0 < after_seq < first_seq - 1:
        workspace = await store.get_workspace(workspace_id)
        if workspace is None or workspace.status is WorkspaceStatus.DELETING:
            raise errors.workspace_not_found(workspace_id)
        problem = f"must be 0 or at least {first_seq - 1}: the log now begins with seq {first_seq}"
        raise errors.invalid({"after": problem})
    return seq, encode(events) if events else ()


async def _last_seq(workspace_id: str, position: int, is_ahead: bool, store: Store) -> int:
    """The `seq` of the last event in the log, for a watcher that has received all of its events."""
    if not is_ahead:
        return position
    workspace = await store.get_workspace(workspace_id)
    return 0 if workspace is None else workspace.last_seq
