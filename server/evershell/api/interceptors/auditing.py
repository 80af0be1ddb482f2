"""Gives each call that changes something its entry in the audit log, and records refusals.

The core stores the entry of an allowed call with the change (core/event.py). This interceptor
records all other entries. The core and the interceptor use the same id for the entry of a call, so
an entry that both record is stored only once.
"""

from datetime import datetime
from functools import partial
from typing import Any, Protocol
from urllib.parse import unquote

import grpc

from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.method_options import (
    CHILDREN_WITH_EFFECT,
    public_methods,
    stored_failures,
)
from evershell.core.event import AUDIT_OK, AuditEntry
from evershell.core.ids import new_audit_id
from evershell.core.ports import Clock
from evershell.core.validation import MAX_REASON_CHARACTERS, is_identifier
from evershell.telemetry.logs import Sampler

# After these outcomes, it is not known whether the change and its audit entry are committed.
_UNCERTAIN = frozenset({"unavailable", "deadline_exceeded", "internal", "caller_gone"})
# Anyone can make unauthenticated calls, so the rate of their entries is limited.
_UNAUTHENTICATED_PER_SECOND = 20
_MAX_REQUEST_ID_CHARACTERS = 128
# The longest IPv6 address as text (INET6_ADDRSTRLEN without the NUL).
_MAX_ADDRESS_CHARACTERS = 45


class Queue(Protocol):
    """Stores entries in the background. It never blocks and never raises."""

    def put(self, entry: AuditEntry, *, uncertain: bool) -> None:
        """Stores the entry soon. Drops an `uncertain` entry if the call itself has stored it."""

    def lose(self) -> None:
        """Counts an entry that is not stored."""


class Auditing(Interceptor):
    """Records refused and failed calls of the methods that change something."""

    def __init__(self, queue: Queue, clock: Clock) -> None:
        self._audited = public_methods(with_effect=True) | CHILDREN_WITH_EFFECT
        self._queue = queue
        self._clock = clock
        self._sampler = Sampler(_UNAUTHENTICATED_PER_SECOND)

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        if method.path not in self._audited:
            return proceed
        rpc, stored = method.name, stored_failures(method.path)

        async def audited(call: Call) -> Any:
            now = self._clock()
            entry_id = new_audit_id(now)
            # The function gets the call as an argument. If it referred to the call, the cycle would
            # keep the call and gRPC's objects in memory until the next garbage collection.
            call.audit = audit = partial(_entry, entry_id, now, rpc)
            outcome = "caller_gone"
            try:
                response = await proceed(call)
                outcome = AUDIT_OK
                return response
            except grpc.aio.AbortError:
                outcome = call.slug
                raise
            finally:
                if outcome != AUDIT_OK and outcome not in stored:
                    self._record(call, audit(call, outcome))

        return audited

    def _record(self, call: Call, entry: AuditEntry) -> None:
        if call.caller is None and self._sampler.admit("unauthenticated") is None:
            self._queue.lose()
        else:
            self._queue.put(entry, uncertain=entry.outcome in _UNCERTAIN)


def _entry(entry_id: str, now: datetime, rpc: str, call: Call, outcome: str) -> AuditEntry:
    """The entry of the call. Fields of the request that are not valid are left empty."""
    caller, request = call.caller, call.request
    reason = getattr(request, "reason", "")
    return AuditEntry(
        id=entry_id,
        time=now,
        org_id=caller.org_id if caller is not None else "",
        actor_id=caller.actor_id if caller is not None else "",
        credential_kind=str(caller.credential_kind) if caller is not None else "",
        credential_id=caller.credential_id if caller is not None else "",
        rpc=rpc,
        workspace_id=_identifier(getattr(request, "workspace_id", "")),
        task_id=_identifier(getattr(request, "task_id", "")),
        outcome=outcome,
        reason=reason if len(reason) <= MAX_REASON_CHARACTERS and "\0" not in reason else "",
        request_id=call.request_id[:_MAX_REQUEST_ID_CHARACTERS],
        trace_id=call.trace_id,
        client_address=_client_address(call)[:_MAX_ADDRESS_CHARACTERS],
    )


def _identifier(value: str) -> str:
    return value if is_identifier(value) else ""


def _client_address(call: Call) -> str:
    """The client's IP address as the edge saw it; for a direct call, the peer's address."""
    forwarded = call.metadata.get("x-forwarded-for")
    if forwarded:
        # The edge appends the address of its peer. The part before it is what the client sent.
        return forwarded.rpartition(",")[2].strip()
    # The peer has the form `ipv4:127.0.0.1:50051`, `ipv6:%5B::1%5D:50051` or `unix:`.
    kind, _, address = call.context.peer().partition(":")
    return kind if kind == "unix" else unquote(address).rpartition(":")[0].strip("[]")
