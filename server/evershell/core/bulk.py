"""What the calls that change many tasks or workspaces have in common: results, and repeats."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Protocol, Self

from evershell.core.change import FirstCall, KeyTakenError
from evershell.core.errors import Failure
from evershell.core.event import AuditEntry
from evershell.core.idempotency import earlier_call
from evershell.core.ports import AuditLog, IdempotencyKeys

# The outcome that the audit log has for a dry run.
DRY_RUN = "dry_run"


class Outcome(StrEnum):
    """What a call does to an item. The protos have the same values."""

    # This call has changed the item.
    ACCEPTED = "accepted"
    # An earlier call has changed the item.
    ALREADY_REQUESTED = "already_requested"
    # This call is a dry run; otherwise it would have changed the item.
    MATCHED = "matched"


@dataclass(frozen=True, slots=True)
class Item:
    """A task, or a workspace, that the call matches, and what the call does to it."""

    workspace_id: str
    # Empty if the item is a workspace.
    task_id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkResult:
    """The counts of all items that match, and the results of a limited number of them."""

    matched: int
    accepted: int = 0
    already_requested: int = 0
    results: tuple[Item, ...] = ()

    @property
    def remaining(self) -> int:
        """The number of items that are left for further calls."""
        return self.matched - self.accepted - self.already_requested

    def as_answer(self) -> str:
        """The result as it is stored in `FirstCall.answer`."""
        return json.dumps(asdict(self))

    @classmethod
    def of_answer(cls, answer: str) -> Self:
        """The result that `as_answer` has stored."""
        stored = json.loads(answer)
        results = (
            Item(**each | {"outcome": Outcome(each["outcome"])}) for each in stored["results"]
        )
        return cls(**stored | {"results": tuple(results)})


class BulkStore(IdempotencyKeys, AuditLog, Protocol):
    """What `once` needs from the store."""


async def once(
    call: FirstCall | None,
    act: Callable[[], Awaitable[BulkResult]],
    store: BulkStore,
    audit: AuditEntry | None,
) -> BulkResult:
    """The result of `act`; if there was an earlier call with the same key, the result of that call.

    `act` stores `call` together with its effect and its answer, and raises KeyTakenError if the key
    is taken. `audit` is the entry of this call. Raises Failure idempotency_conflict, and what `act`
    raises.
    """
    try:
        return await act()
    except (Failure, KeyTakenError) as refusal:
        first = await earlier_call(call, refusal, store)
    await store.add_audit_entry(audit)
    return BulkResult.of_answer(first.answer)
