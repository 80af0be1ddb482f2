"""Use cases: put an organization on hold, release it, read its hold.

The promise: no call that commits after the hold submits a task or starts an agent. A call that
submits a task or starts an agent holds a shared lock of the organization until it commits, and
checks for a hold under this lock. A call that sets a hold takes the lock exclusively. It therefore
waits for the calls that hold the lock, and later calls find the hold.
"""

from dataclasses import dataclass
from typing import Protocol

from evershell.core.bulk import BulkResult
from evershell.core.caller import Caller, Permission
from evershell.core.cancel_task import intent_of
from evershell.core.cancel_tasks import cancel_until_done
from evershell.core.change import Hold
from evershell.core.event import Origin
from evershell.core.ports import Cancellations, Clock, Holds
from evershell.core.task_filter import AllTasks
from evershell.core.validation import MAX_REASON_CHARACTERS, Fields

_SCOPE = "org:hold"
_CANCEL_SCOPE = "workspace:write"
# The longest time that one call spends on cancelling tasks. The call's deadline may come earlier.
_CANCEL_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOrg:
    """The request. Raises Failure validation_error."""

    reason: str = ""
    # Whether to also cancel all tasks that have not ended.
    cancel_running: bool = False
    origin: Origin

    def __post_init__(self) -> None:
        fields = Fields()
        fields.text("reason", self.reason, max_characters=MAX_REASON_CHARACTERS)
        fields.check()


class HoldStore(Holds, Cancellations, Protocol):
    """What `hold_org` needs from the store."""


async def hold_org(
    caller: Caller, request: HoldOrg, store: HoldStore, clock: Clock
) -> tuple[Hold, BulkResult]:
    """Puts the caller's organization on hold. Returns the hold in force, and what was cancelled.

    An existing hold keeps its caller, time and reason. The tasks are cancelled after the hold is
    committed, so no task is missed. Raises Failure permission_denied.
    """
    caller.require(_SCOPE)
    if request.cancel_running:
        caller.require(_CANCEL_SCOPE)
    hold = Hold(
        org_id=caller.org_id,
        held_by=caller.actor_id,
        held_since=clock(),
        reason=request.reason,
    )
    held = await store.hold_org(hold, request.origin.audit)
    if not request.cancel_running:
        return held, BulkResult(matched=0)
    everything = Permission(caller, (_CANCEL_SCOPE,), own_only=False)
    intent = intent_of(caller, request.reason, None, request.origin, clock)
    cancelled = await cancel_until_done(
        everything, AllTasks(), intent, request.origin, store, _CANCEL_SECONDS
    )
    return held, cancelled


async def release_org(caller: Caller, origin: Origin, store: Holds) -> None:
    """Ends the hold of the caller's organization, if there is one.

    Raises Failure permission_denied.
    """
    caller.require(_SCOPE)
    await store.release_org(caller.org_id, origin.audit)


async def get_hold(caller: Caller, store: Holds) -> Hold | None:
    """The hold of the caller's organization. Raises Failure permission_denied."""
    caller.permission("workspace:read")
    return await store.get_hold(caller.org_id)
