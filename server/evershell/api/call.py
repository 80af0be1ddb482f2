"""The current call. Interceptors get it as an argument; servicers read it here."""

import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast

import grpc
from evershell.agent.v1 import runtime_service_pb2
from google.protobuf.message import Message

from evershell.core import errors
from evershell.core.caller import Caller
from evershell.core.change import (
    MAX_AGENT_KEY_CHARACTERS,
    MAX_KEY_CHARACTERS,
    IdempotencyKey,
)
from evershell.core.event import AUDIT_OK, AuditEntry, Origin
from evershell.core.runtime import AgentIdentity

Context = grpc.aio.ServicerContext[Any, Any]
# Marks REST calls, whose errors carry the envelope. The edge's REST listener sets this header, and
# its gRPC listener strips it.
EDGE_HEADER = "x-evershell-edge"
# The edge sets this header for a REST call whose body is large or has an unknown size.
LARGE_BODY_HEADER = "x-evershell-large-body"
# The host that the client named, as the edge received it.
HOST_HEADER = "x-evershell-host"
# Tells the edge the HTTP status: in the initial metadata of a success, or the trailers of an error.
STATUS_HEADER = "x-evershell-status"
ENVELOPE_TRAILER = "x-evershell-error"
IDEMPOTENCY_HEADER = "idempotency-key"


@dataclass(slots=True)
class Call:
    """One call, with the facts that the interceptors add to it."""

    context: Context
    metadata: dict[str, str]
    # The id from the edge, or an id made here. Log lines and events of the call carry it.
    request_id: str
    # Whether the call came through the edge's REST listener.
    is_rest: bool
    # The time that was left until the deadline when the call began: 0 if the deadline had passed,
    # None without a deadline.
    left_seconds: float | None = None
    # The parsed request; None until it is read.
    request: Any = None
    # Empty if the call does not belong to a trace.
    trace_id: str = ""
    # The slug of the failure; empty for a success.
    slug: str = ""
    # Whether a stream has sent a message. An error must then be sent as a message too.
    has_streamed: bool = False
    caller: Caller | None = None
    # Makes the audit entry of this call from its outcome; None for a method without audit entries.
    audit: Callable[["Call", str], AuditEntry] | None = None
    agent: AgentIdentity | None = None


_current: ContextVar[Call] = ContextVar("call")


def begin(context: Context) -> Call:
    """Makes an arrived call the current call, and reads its metadata."""
    # Only keys that end in `-bin` have bytes as values. This service does not read such keys.
    pairs = cast(tuple[tuple[str, str], ...], context.invocation_metadata())
    metadata = dict(pairs)
    if len(metadata) != len(pairs):
        metadata = _joined(pairs)
    call = Call(
        context=context,
        metadata=metadata,
        request_id=_request_id(metadata),
        is_rest=metadata.get(EDGE_HEADER) == "rest",
        left_seconds=context.time_remaining(),
    )
    _current.set(call)
    return call


def _request_id(metadata: dict[str, str]) -> str:
    """The id that the edge has chosen, or a new id if the call did not come through the edge.

    A caller who reaches a worker directly can choose the id only by imitating the headers of the
    edge.
    """
    chosen = metadata.get("x-request-id") if HOST_HEADER in metadata else None
    return chosen or str(uuid.uuid4())


def _joined(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The values of each key, joined by commas (RFC 9110, section 5.3).

    A call with two credentials therefore has no valid credential. Otherwise a proxy could check one
    of them, and this service the other.
    """
    joined: dict[str, str] = {}
    for name, value in pairs:
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def current() -> Call:
    """The current call."""
    return _current.get()


def caller() -> Caller:
    """The authenticated caller of the current call."""
    caller = current().caller
    assert caller is not None, "the method is missing from the authentication table"
    return caller


def agent() -> AgentIdentity:
    """The authenticated agent of the current call."""
    agent = current().agent
    assert agent is not None, "the method is missing from the authentication table"
    return agent


def origin() -> Origin:
    """The current call as the origin of the events that it causes."""
    call = current()
    return Origin(call.request_id, call.trace_id, call.audit and call.audit(call, AUDIT_OK))


async def send_status_200(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Makes the edge answer a REST call with 200 instead of the method's usual status.

    Used if the requested work is already done, and not only accepted.
    """
    if current().is_rest:
        await context.send_initial_metadata(((STATUS_HEADER, "200"),))


def idempotency_key(request: Message) -> IdempotencyKey | None:
    """The idempotency key of the current call; None if it has none.

    Raises Failure validation_error.
    """
    key = current().metadata.get(IDEMPOTENCY_HEADER)
    if key is None:
        return None
    _check_key(IDEMPOTENCY_HEADER, key, MAX_KEY_CHARACTERS)
    return IdempotencyKey(key, fingerprint(request))


def agent_key(request: runtime_service_pb2.SubmitChildRequest) -> IdempotencyKey:
    """The idempotency key of an agent's submission. Raises Failure validation_error.

    The key is valid for one parent task. It contains a line end, so it cannot equal a caller's key,
    which must be printable.
    """
    key = request.idempotency_key
    _check_key("idempotency_key", key, MAX_AGENT_KEY_CHARACTERS)
    return IdempotencyKey(f"{request.parent_task_id}\n{key}", fingerprint(request))


def _check_key(field: str, key: str, limit: int) -> None:
    if not (0 < len(key) <= limit and key.isascii() and key.isprintable()):
        raise errors.invalid({field: f"must have 1 to {limit} printable ASCII characters"})


def fingerprint(request: Message) -> bytes:
    """A hash that is equal only for equal requests of the same type, and so of the same method."""
    content = request.DESCRIPTOR.full_name.encode() + b"\n"
    content += request.SerializeToString(deterministic=True)
    return sha256(content).digest()
