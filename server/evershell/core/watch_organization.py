"""Use case: watch the events of all workspaces of an organization."""

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from operator import attrgetter

from evershell.core import errors
from evershell.core.caller import Caller
from evershell.core.event import Encoded, Event, EventBatch, LogScope
from evershell.core.event_feeds import BATCH_EVENTS, EventFeeds, Heartbeat, Message
from evershell.core.ports import Clock, EventLog
from evershell.core.validation import Fields
from evershell.core.watch_events import Begun, follow

# A watch that resumes begins at most this many positions before the end of the log of all
# workspaces. This bounds the number of statements with which it reads what it has missed.
MAX_POSITIONS_BEHIND = 100_000
# A watch that has read this many parts of the log without an event sends a heartbeat with its
# position, so that its consumer does not begin again.
_READS_WITHOUT_EVENT = 20


def watch_organization(
    caller: Caller,
    after: int,
    store: EventLog,
    feeds: EventFeeds,
    clock: Clock,
    encode: Callable[[Sequence[Event]], Sequence[Encoded]],
    encode_heartbeat: Callable[[Heartbeat], Encoded],
    opening: Sequence[Encoded] = (),
) -> AsyncIterator[Encoded]:
    """Yields the events after the position `after`, then new events, and heartbeats.

    Yields only events of workspaces that the caller may read, in the order of their positions. If
    `after` is 0, begins with new events. The first heartbeat then comes at once, and says where the
    watch begins: all earlier changes are visible to the caller's next calls.

    `encode`, `encode_heartbeat`, `opening` and the end of the watch are as for watch_events.

    Raises Failure: validation_error (`after` is beyond the end of the log, or more than
    MAX_POSITIONS_BEHIND before it), permission_denied, unavailable (the server drains);
    UnavailableError.
    """
    begin = partial(_begin, caller, after, store, feeds, clock)
    return follow(begin, encode, encode_heartbeat, opening)


async def _begin(
    caller: Caller, after: int, store: EventLog, feeds: EventFeeds, clock: Clock
) -> Begun:
    """Begins the watch. Raises Failure if the caller may not watch."""
    fields = Fields()
    fields.between("after", after, 0, 2**63 - 1)
    fields.check()
    permission = caller.permission("workspace:read")
    # No workspace belongs to an API key, so a key with the scope for its own workspaces sees none.
    scope = LogScope(caller.org_id, (caller.user_id or "") if permission.own_only else None)
    if after:
        _check_position(after, await store.last_position())
    log, watcher = _OrganizationLog(scope, store, clock), await feeds.join_log(scope)
    if after:
        return Begun(log, watcher, after)
    return Begun(log, watcher, watcher.missed, Heartbeat(clock(), watcher.missed))


def _check_position(after: int, last: int) -> None:
    """Raises Failure validation_error if a watch cannot begin after this position."""
    if after > last:
        problem = f"the log ends with position {last}"
    elif after < last - MAX_POSITIONS_BEHIND:
        problem = f"it is more than {MAX_POSITIONS_BEHIND:,} positions before the end of the log"
    else:
        return
    advice = "List the workspaces again, and begin without `after`."
    raise errors.invalid({"after": f"is not a position to resume from: {problem}. {advice}"})


class _OrganizationLog:
    """Implements Log."""

    __slots__ = ("_clock", "_scope", "_store")

    position_of = staticmethod(attrgetter("position"))

    def __init__(self, scope: LogScope, store: EventLog, clock: Clock) -> None:
        self._scope = scope
        self._store = store
        self._clock = clock

    async def read(self, after: int, until: int) -> Message:
        for _ in range(_READS_WITHOUT_EVENT):
            entries, after = await self._store.list_log_events(
                (self._scope,), after, until, BATCH_EVENTS
            )
            if entries or after == until:
                return EventBatch(entry.event for entry in entries)
        return Heartbeat(self._clock(), after)

    async def check_next(self, after: int, first: int) -> None:
        """Events that were removed are left out."""
