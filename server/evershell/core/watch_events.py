"""Use case: watch the event log of a workspace."""

from collections.abc import AsyncIterator, Callable, Sequence

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
)
from evershell.core.ports import Workspaces
from evershell.core.validation import Fields
from evershell.core.workspace import WorkspaceStatus


async def watch_events(
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
    last_seq = await _admit(caller, workspace_id, after_seq, store)
    # Frees memory: there may be thousands of streams, which may last for days.
    del caller
    seq = after_seq
    watcher = feeds.join(workspace_id, last_seq)
    try:
        while True:
            missed_seq = watcher.missed_seq
            if seq < missed_seq:
                received: Message | None = await store.list_events(workspace_id, seq, BATCH_EVENTS)
                if not received:
                    await _check_next(workspace_id, seq, missed_seq + 1, store)
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
                yield encode_heartbeat(received)
            elif received and seq < (last_seq := received[-1].seq):
                first_seq = received[0].seq
                await _check_next(workspace_id, seq, first_seq, store)
                encoded = received.encoded(encode)
                # Frees the events while the consumer takes the encoded results.
                del received
                for item in opening:
                    yield item
                opening = ()
                for index in range(max(0, seq + 1 - first_seq), len(encoded)):
                    yield encoded[index]
                # Frees the memory while the log is quiet.
                del encoded
                seq = last_seq
    except FeedEndedError:
        message = f"The server is shutting down. Watch again with after={seq}."
        raise Failure("unavailable", message, retry_after_seconds=1) from None
    finally:
        watcher.leave()


async def _admit(caller: Caller, workspace_id: str, after_seq: int, store: Workspaces) -> int:
    """Returns the `seq` of the last event. Raises Failure if the caller may not watch."""
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
    return last_seq


async def _check_next(workspace_id: str, after_seq: int, first_seq: int, store: Workspaces) -> None:
    """Checks that no event between `after_seq` and `first_seq` was removed.

    Raises Failure: validation_error if an event was removed, workspace_not_found if the workspace
    is deleted.
    """
    if 0 < after_seq < first_seq - 1:
        workspace = await store.get_workspace(workspace_id)
        if workspace is None or workspace.status is WorkspaceStatus.DELETING:
            raise errors.workspace_not_found(workspace_id)
        problem = f"must be 0 or at least {first_seq - 1}: the log now begins with seq {first_seq}"
        raise errors.invalid({"after": problem})
