"""Refuses calls that the worker cannot serve in time."""

from collections.abc import Callable
from typing import Any

from evershell.api.call import Call
from evershell.api.interceptors.errors import abort
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.interceptors.refusals import unavailable
from evershell.api.interceptors.shares import Kind, kind_of
from evershell.api.method_options import FIRST, HEARTBEAT, PUBLIC_SERVICES, RUNTIME_SERVICE
from evershell.api.queueing_delay import Priority, QueueingDelay
from evershell.core import deadline
from evershell.core.errors import Failure

# The calls that give or renew a lease.
_LEASES = frozenset({HEARTBEAT, f"/{RUNTIME_SERVICE}/Register"})


class Admission(Interceptor):
    """Refuses calls before authentication and audit: a refusal is cheap and has no audit entry.

    A refused call has no effect. The interceptor refuses calls whose deadline has passed, the least
    important calls while the worker is overloaded, and public calls while the worker is not ready.
    If no worker is ready, the edge sends calls to all workers, because it cannot tell whether they
    are only slow. A worker that is not ready still serves the calls of agents, because they wait
    for the database anyway.
    """

    def __init__(self, delay: QueueingDelay, arrived: Callable[[], None] = lambda: None) -> None:
        """`arrived` is called for each call to the public services and to RuntimeService."""
        self._delay = delay
        self._arrived = arrived
        # Whether the worker can serve public calls.
        self.is_ready = True

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        priority = _priority(method)
        if priority is None:
            return proceed
        delay, arrived = self._delay, self._arrived
        needs_database = method.service in PUBLIC_SERVICES

        async def admitted(call: Call) -> Any:
            arrived()
            deadline.begin(call.left_seconds, 0.0 if delay.is_short else delay.seconds)
            if call.left_seconds == 0:
                message = "The deadline had passed before the call began. The call had no effect."
                await abort(call, Failure("deadline_exceeded", message), method)
            if needs_database and not self.is_ready:
                problem = "The service cannot reach its database."
                await abort(call, await unavailable(call, method, problem), method)
            if delay.refuses(priority):
                problem = "The service is overloaded."
                await abort(call, await unavailable(call, method, problem), method)
            return await proceed(call)

        return admitted


def _priority(method: Method) -> Priority | None:
    """The priority of the method's calls; None for health and reflection, which are not refused."""
    if method.service not in (*PUBLIC_SERVICES, RUNTIME_SERVICE):
        return None
    if method.path in _LEASES:
        return Priority.LEASES
    if method.path in FIRST:
        return Priority.FIRST
    if method.service == RUNTIME_SERVICE:
        return Priority.AGENTS
    if kind_of(method) in (Kind.READS, Kind.STREAMS):
        return Priority.LAST
    return Priority.OTHERS
