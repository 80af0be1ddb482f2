"""Gives each call its request id and writes its log line."""

import time
import uuid
from http import HTTPStatus
from typing import Any

import grpc
import structlog

from server.api import call as calls
from server.api import status
from server.api.call import EDGE_HEADER, Call
from server.api.interceptors.interceptor import Context, Details, Interceptor, Proceed
from server.core import trace
from server.core.trace import TraceContext
from server.telemetry.logs import Sampler

log = structlog.get_logger()


class RequestLog(Interceptor):
    """Writes one line for each call, also when the call fails or its caller goes away."""

    def __init__(self) -> None:
        # Calls of the project's own services that have arrived so far.
        self.arrived_calls = 0
        self._sampler = Sampler()

    async def around(self, details: Details, context: Context, proceed: Proceed) -> Any:
        metadata = {
            key: value for key, value in details.invocation_metadata if isinstance(value, str)
        }
        call = Call(
            method=details.method,
            request_id=metadata.get("x-request-id") or str(uuid.uuid4()),
            is_rest=metadata.get(EDGE_HEADER) == "rest",
            metadata=metadata,
        )
        calls.begin(call)
        self.arrived_calls += details.method.startswith("/evershell.")
        trace.begin(TraceContext.parse(metadata.get(trace.HEADER)))
        call.trace_id = trace.current_id()
        context.set_trailing_metadata((("x-request-id", call.request_id),))
        began = time.perf_counter()
        outcome = "caller_gone"
        try:
            response = await proceed()
            outcome = "ok"
            return response
        except grpc.aio.AbortError:
            outcome = call.slug or "failed"
            raise
        finally:
            self._write(call, outcome, time.perf_counter() - began)

    def _write(self, call: Call, outcome: str, seconds: float) -> None:
        """Writes the line.

        Lines of unauthenticated and refused calls have a rate limit per outcome, so that no caller
        can fill the disk.
        """
        facts: dict[str, Any] = {"method": call.method, "request_id": call.request_id}
        if call.trace_id:
            facts["trace_id"] = call.trace_id
        if call.caller is not None:
            facts |= {"org_id": call.caller.org_id, "actor_id": call.caller.actor_id}
        if call.agent is not None:
            facts["workspace_id"] = call.agent.workspace_id
        is_authenticated = call.caller is not None or call.agent is not None
        if not is_authenticated or _is_refusal(call.slug):
            repeats = self._sampler.admit(outcome)
            if repeats is None:
                return
            facts |= repeats
        log.info("rpc_completed", outcome=outcome, duration_ms=round(seconds * 1000, 2), **facts)


def _is_refusal(slug: str) -> bool:
    return slug in status.RULES and status.RULES[slug].http < HTTPStatus.INTERNAL_SERVER_ERROR
