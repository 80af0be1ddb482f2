"""Opens the spans of calls. This module is imported only if traces are exported."""

from http import HTTPStatus
from typing import Any

import grpc
from opentelemetry.trace import SpanKind, Status, StatusCode

from evershell.api import status
from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.method_options import PUBLIC_SERVICES, RUNTIME_SERVICE
from evershell.core import trace
from evershell.telemetry.tracing import Tracing


class TracedCalls(Interceptor):
    """Opens spans for calls of the project's own services, but not of health and reflection."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        if method.service not in (*PUBLIC_SERVICES, RUNTIME_SERVICE):
            return proceed
        name = f"{method.service}/{method.name}"
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": method.service,
            "rpc.method": method.name,
        }

        async def traced(call: Call) -> Any:
            facts = {**attributes, "evershell.request_id": call.request_id}
            with self._tracing.span(name, SpanKind.SERVER, **facts) as span:
                call.trace_id = trace.current_id()
                try:
                    return await proceed(call)
                except grpc.aio.AbortError:
                    span.set_attribute("evershell.slug", call.slug)
                    if status.RULES[call.slug].http >= HTTPStatus.INTERNAL_SERVER_ERROR:
                        span.set_status(Status(StatusCode.ERROR, call.slug))
                    raise

        # Agents call every few seconds. Only their calls that continue a trace get a span.
        async def traced_if_continued(call: Call) -> Any:
            return await (proceed if trace.current() is None else traced)(call)

        return traced if method.service in PUBLIC_SERVICES else traced_if_continued
