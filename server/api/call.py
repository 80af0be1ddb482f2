"""What the edge knows of the call in hand: set once by the outermost interceptor, read where it is
needed.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

from server.core.caller import Caller
from server.core.runtime import AgentIdentity

# HTTP status for the edge to show: in the initial metadata of a success, in the trailers of an
# error.
STATUS_HEADER = "x-evershell-status"


@dataclass(slots=True)
class Call:
    """One call. What is learnt of it on the way is noted here, for the log line."""

    # `/package.Service/Method`.
    method: str
    # Equals the header x-request-id, and is in every log line and event of the call.
    request_id: str
    # Whether it came through the REST listener.
    is_rest: bool
    metadata: dict[str, str]
    # Of the trace that it is part of; empty for none.
    trace_id: str = ""
    # The slug it failed with; empty for a success.
    slug: str = ""
    # Whether a stream has sent a message: from then on an error can only be told in the stream.
    has_streamed: bool = False
    caller: Caller | None = None
    agent: AgentIdentity | None = None


_current: ContextVar[Call] = ContextVar("call")


def begin(call: Call) -> None:
    """Makes this the call in hand."""
    _current.set(call)


def current() -> Call:
    """The call in hand."""
    return _current.get()


def caller() -> Caller:
    """The authenticated caller of the call in hand."""
    caller = current().caller
    assert caller is not None, "the method is missing from the authentication table"
    return caller


def agent() -> AgentIdentity:
    """The authenticated agent of the call in hand."""
    agent = current().agent
    assert agent is not None, "the method is missing from the authentication table"
    return agent


async def say_ok(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Has REST show 200 instead of the method's usual status: what was asked for has not only been
    accepted but is done.
    """
    if current().is_rest:
        await context.send_initial_metadata(((STATUS_HEADER, "200"),))
