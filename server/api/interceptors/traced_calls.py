"""Opens a span for every call. Imported only if traces are exported."""

from http import HTTPStatus
from typing import Any

import grpc
from opentelemetry.trace import SpanKind, Status, StatusCode

from server.api import call as calls
from server.api import status
from server.api.interceptors.interceptor import Context, Details, Interceptor, Proceed
from server.core import trace
from server.telemetry.tracing import Tracing

_PUBLIC = "/evershell.workspace.v1.WorkspaceService/"
_INTERNAL = "/evershell.agent.v1.RuntimeService/"


class TracedCalls(Interceptor):
    """Opens the spans of the project's own services. Health and reflection have none."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def around(self, details: Details, context: Context, proceed: Proceed) -> Any:
        method, call = details.method, calls.current()
        # Agents call every few seconds. Only their calls that continue a trace get a span.
        is_traced = method.startswith(_PUBLIC) or (
            method.startswith(_INTERNAL) and trace.current() is not None
        )
        if not is_traced:
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
                if status.RULES[call.slug].http >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    span.set_status(Status(StatusCode.ERROR, call.slug))
                raise
