"""Repeats of a call with the same idempotency key: they get the answer of the first call.

A key belongs to its caller: all sessions of a user, or an API key. The same text from another
caller is a different key. If the answer to the first call contains a secret, the answer to a repeat
leaves it out.

The first call stores its key in the transaction that commits its effect. A key is therefore stored
if and only if its call had an effect, so a crash never leaves a key that blocks repeats. If two
calls with the same key arrive at the same time, the database makes one of them wait for the
transaction of the other.

The steps after that transaction can be repeated without harm. A repeat that arrives before the
first call has answered takes these steps too, and both calls return the answer that was stored
first.
"""

from dataclasses import replace

from evershell.core import errors
from evershell.core.caller import Permission
from evershell.core.change import Change, FirstCall, KeyTakenError, Locked, unchanged
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.ports import IdempotencyKeys, Transitions

# After one of these failures, the first call is not looked up, because the first call cannot have
# caused the failure.
_NO_ACCESS = frozenset({"permission_denied", "workspace_not_found"})


async def earlier_call(
    call: FirstCall | None, refusal: Failure | KeyTakenError, store: IdempotencyKeys
) -> FirstCall:
    """The first call with the key of `call`, after `call` was refused.

    The effect of the first call may be the reason for the refusal: for example, the workspace is
    busy with the task that the first call submitted. If there was no earlier call, raises
    `refusal`, or Failure unavailable in place of a KeyTakenError. Raises Failure
    idempotency_conflict if the earlier call had another request.
    """
    if call is None or (isinstance(refusal, Failure) and refusal.slug in _NO_ACCESS):
        raise refusal
    first_call = await store.find_first_call(call)
    if first_call is None:
        # If the refusal is a KeyTakenError, the key was taken, but has expired since.
        raise refusal if isinstance(refusal, Failure) else errors.unavailable()
    if first_call.fingerprint != call.fingerprint:
        raise errors.idempotency_conflict(call.chosen_key, first_call.called_at)
    return first_call


async def read_again(
    first: FirstCall, permission: Permission, origin: Origin, store: Transitions
) -> Change:
    """The workspace of the first call, with its current task. `origin` describes the repeat.

    Stores the repeat's entry in the audit log. Raises Failure: permission_denied,
    workspace_not_found.
    """

    def read(locked: Locked) -> Change:
        permission.check(locked.workspace, first.workspace_id)
        audit = origin.audit and replace(
            origin.audit, workspace_id=first.workspace_id, task_id=first.task_id
        )
        return replace(unchanged(locked), audit=audit)

    state = await store.transition(first.workspace_id, read)
    if state is None:
        raise errors.workspace_not_found(first.workspace_id)
    return state
