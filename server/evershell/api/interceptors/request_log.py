"""For each call: returns the request id, writes a log line, and measures the call."""

import asyncio
from http import HTTPStatus
from time import perf_counter
from typing import Any

import grpc
import structlog

from evershell.api import status
from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.method_options import HEALTH_CHECK, HEARTBEAT
from evershell.core import trace
from evershell.core.trace import TraceContext
from evershell.telemetry.logs import Sampler
from evershell.telemetry.metrics import Metrics

log = structlog.get_logger()

# Programs make these calls all the time, so successful ones are not logged.
_UNLOGGED = (HEARTBEAT, HEALTH_CHECK)
# The maximum number of lines per second for calls without a valid credential. The edge logs these
# calls too.
_LINES_OF_STRANGERS_PER_SECOND = 10
_OWN_SERVICES = ("evershell.", "lf.a2a.")
# The slugs of calls that the service refuses. All other slugs are failures of the service.
_REFUSALS = frozenset(
    slug for slug, rule in status.RULES.items() if rule.http < HTTPStatus.INTERNAL_SERVER_ERROR
)


class RequestLog(Interceptor):
    """Writes one line for each call, even when the call fails or its caller goes away.

    Writes no line for heartbeats and health checks that succeed, and none beyond the rate limits
    (see `_write`).

    Counts and times calls by method and outcome. Only methods that exist are wrapped, so the number
    of counters is bounded.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # The number of calls of the project's own services that have arrived so far.
        self.arrived_calls = 0
        self._refused = Sampler()
        self._of_strangers = Sampler(_LINES_OF_STRANGERS_PER_SECOND)

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        path, is_own = method.path, method.service.startswith(_OWN_SERVICES)
        measured = self._metrics.rpc(method.name)

        async def logged(call: Call) -> Any:
            began = perf_counter()
            self.arrived_calls += is_own
            if (traceparent := call.metadata.get(trace.HEADER)) is not None:
                trace.begin(TraceContext.parse(traceparent))
                call.trace_id = trace.current_id()
            call.context.set_trailing_metadata((("x-request-id", call.request_id),))
            measured.begin()
            outcome = "caller_gone"
            try:
                response = await proceed(call)
                outcome = "ok"
                return response
            except grpc.aio.AbortError:
                # Health and reflection fail without a slug.
                outcome = call.slug or "failed"
                raise
            finally:
                seconds = perf_counter() - began
                measured.end(outcome, seconds)
                if path not in _UNLOGGED or outcome != "ok":
                    # Writes in the next turn of the event loop, when gRPC has sent the reply.
                    asyncio.get_running_loop().call_soon(self._write, path, call, outcome, seconds)

        return logged

    def _write(self, path: str, call: Call, outcome: str, seconds: float) -> None:
        """Writes the line, unless its rate limit is reached.

        So that no caller can fill the disk, the lines for callers without a valid credential share
        one rate limit, and the lines for refused calls have a rate limit for each outcome.
        """
        facts: dict[str, Any] = {}
        repeats: dict[str, int] | None = {}
        if call.caller is None and call.agent is None:
            repeats = self._of_strangers.admit("stranger")
        elif outcome in _REFUSALS:
            repeats = self._refused.admit(outcome)
        if repeats is None:
            return
        facts.update(repeats)
        if call.trace_id:
            facts["trace_id"] = call.trace_id
        if call.caller is not None:
            facts["org_id"], facts["actor_id"] = call.caller.org_id, call.caller.actor_id
        if call.agent is not None:
            facts["workspace_id"] = call.agent.workspace_id
        log.info(
            "rpc_completed",
            outcome=outcome,
            duration_ms=round(seconds * 1000, 2),
            method=path,
            request_id=call.request_id,
            **facts,
        )
