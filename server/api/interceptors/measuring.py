"""Measures every call."""

from typing import Any

import grpc

from server.api import call as calls
from server.api.interceptors.interceptor import Context, Details, Interceptor, Proceed
from server.telemetry.metrics import Metrics


class Measuring(Interceptor):
    """Counts and times calls by method and outcome.

    gRPC calls interceptors only for methods that exist, so the number of methods is bounded.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def around(self, details: Details, context: Context, proceed: Proceed) -> Any:
        with self._metrics.call(details.method.rpartition("/")[2]) as measured:
            try:
                response = await proceed()
            except grpc.aio.AbortError:
                measured.outcome = calls.current().slug
                raise
            measured.outcome = "ok"
            return response
