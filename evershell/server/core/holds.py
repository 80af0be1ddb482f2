"""Use cases: put an organization on hold, release it, read its hold.

The promise: no task is submitted, and no agent started, by a call that is committed after the hold.
Each such call shares a lock of the organization until it is committed, and reads the hold under it.
A hold takes the same lock alone. It therefore waits for the calls that have the lock, and the calls
that come later find it.
"""

from dataclasses import dataclass

from evershell.server.core.caller import Caller
from evershell.server.core.event import Origin
from evershell.server.core.hold import Hold
from evershell.server.core.ports import Clock, Store
from evershell.server.core.validation import MAX_REASON_CHARACTERS, Fields

_SCOPE = "org:hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOrg:
    """The request. Raises Failure validation_error."""

    reason: str = ""
    origin: Origin

    def __post_init__(self) -> None:
        fields = Fields()
        fields.text("reason", self.reason, max_characters=MAX_REASON_CHARACTERS)
        fields.check()


async def hold_org(caller: Caller, request: HoldOrg, store: Store, clock: Clock) -> Hold:
    """Puts the caller's organization on hold. Returns the hold in force.

    If there is one already, its caller, time and reason stay. Raises Failure permission_denied.
    """
    caller.require(_SCOPE)
    hold = Hold(
        org_id=caller.org_id,
        held_by=caller.actor_id,
        held_since=clock(),
        reason=request.reason,
    )
    return await store.hold_org(hold, request.origin.audit)


async def release_org(caller: Caller, origin: Origin, store: Store) -> None:
    """Ends the hold of the caller's organization, if there is one.

    Raises Failure permission_denied.
    """
    caller.require(_SCOPE)
    await store.release_org(caller.org_id, origin.audit)


async def get_hold(caller: Caller, store: Store) -> Hold | None:
    """The hold of the caller's organization. Raises Failure permission_denied."""
    caller.permission("workspace:read")
    return await store.get_hold(caller.org_id)
