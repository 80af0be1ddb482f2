"""Measures every call."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from server.api import call as calls
from server.api.interceptors import Context, Interceptor
from server.metrics import Metrics


class Measuring(Interceptor):
    """Outside of what gives a failure its slug. Only methods that exist come here, so that their
    names are a closed set.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def around(
        self,
        details: grpc.HandlerCallDetails,
        context: Context,
        proceed: Callable[[], Awaitable[Any]],
    ) -> Any:
        """See Interceptor."""
        with self._metrics.call(details.method.rpartition("/")[2]) as measured:
            try:
                answer = await proceed()
            except grpc.aio.AbortError:
                measured.outcome = calls.current().slug
                raise
            measured.outcome = "ok"
            return answer
