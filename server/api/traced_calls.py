"""A span around every call of ours. Imported only when there is somewhere to send spans."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from opentelemetry.trace import SpanKind, Status, StatusCode

from server.api import call as calls
from server.api import status
from server.api.interceptors import Context, Interceptor
from server.core import trace
from server.tracing import Tracing

_PUBLIC = "/evershell.workspace.v1.WorkspaceService/"
_INTERNAL = "/evershell.agent.v1.RuntimeService/"


class TracedCalls(Interceptor):
    """Inside of the log, whose line then names the trace. Health and reflection are no part of one."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def around(
        self,
        details: grpc.HandlerCallDetails,
        context: Context,
        proceed: Callable[[], Awaitable[Any]],
    ) -> Any:
        """See Interceptor."""
        method, call = details.method, calls.current()
        # Agents call every few seconds; only what comes of a call that is traced is of interest.
        if not (
            method.startswith(_PUBLIC)
            or (method.startswith(_INTERNAL) and trace.current() is not None)
        ):
            return await proceed()
        service, _, name = method.lstrip("/").partition("/")
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "evershell.request_id": call.request_id,
        }
        with self._tracing.span(f"{service}/{name}", SpanKind.SERVER, **attributes) as span:
            call.trace_id = trace.current_id()
            try:
                return await proceed()
            except grpc.aio.AbortError:
                span.set_attribute("evershell.slug", call.slug)
                if status.RULES[call.slug].http >= 500:
                    span.set_status(Status(StatusCode.ERROR, call.slug))
                raise
