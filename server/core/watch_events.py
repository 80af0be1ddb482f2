"""Follow a workspace's log."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from server.core.caller import Caller
from server.core.errors import Failure
from server.core.event import Event
from server.core.ports import Clock, Store, Wakeups
from server.core.validation import Fields

HEARTBEAT_SECONDS = 15.0
# How many events are held for a watcher at once; the next are read when it has taken these.
BATCH_EVENTS = 100


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The stream is alive and nothing has happened."""

    time: datetime
    seq: int


async def watch_events(
    caller: Caller, workspace_id: str, after_seq: int, store: Store, wakeups: Wakeups, clock: Clock
) -> AsyncIterator[Event | Heartbeat]:
    """What the log holds behind `after_seq`, then what comes; ends only when its consumer goes, or the server does.

    Each batch is read from the log when the one before has been taken, so a slow watcher holds at most one.
    Raises Failure: permission_denied, workspace_not_found, unavailable (the server drains); UnavailableError.
    """
    fields = Fields()
    fields.identifier("workspace_id", workspace_id)
    fields.between("after", after_seq, 0, 2**63 - 1)
    fields.check()
    permission = caller.permission("workspace:read")
    permission.check(await store.get_workspace(workspace_id), workspace_id)
    seq = after_seq
    # Subscribed before the first read, so that nothing is committed unseen between a read and the wait.
    async with wakeups.subscribe(workspace_id) as wakeup:
        quiet_since = clock()
        while True:
            events = await store.list_events(workspace_id, seq, BATCH_EVENTS)
            for event in events:
                yield event
                seq = event.seq
            if events:
                quiet_since = clock()
                continue
            quiet_seconds = (clock() - quiet_since).total_seconds()
            if quiet_seconds >= HEARTBEAT_SECONDS:
                quiet_since = clock()
                yield Heartbeat(quiet_since, seq)
            elif not await wakeup.wait(HEARTBEAT_SECONDS - quiet_seconds):
                # Something has then been sent, so that the failure is told within the stream, as everything about streams is.
                yield Heartbeat(clock(), seq)
                message = f"This stream ends, for its server is about to. Watch again with after={seq}."
                raise Failure("unavailable", message, retry_after_seconds=1)
