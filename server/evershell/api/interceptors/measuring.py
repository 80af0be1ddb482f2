"""Measures every call."""

from time import perf_counter
from typing import Any

import grpc

from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.telemetry.metrics import Metrics


class Measuring(Interceptor):
    """Counts and times calls by method and outcome.

    Only methods that exist are wrapped, so their number is bounded.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        measured = self._metrics.rpc(method.name)

        async def measure(call: Call) -> Any:
            measured.begin()
            started, outcome = perf_counter(), "caller_gone"
            try:
                response = await proceed(call)
                outcome = "ok"
                return response
            except grpc.aio.AbortError:
                # Health and reflection fail without a slug.
                outcome = call.slug or "failed"
                raise
            finally:
                measured.end(outcome, perf_counter() - started)

        return measure
