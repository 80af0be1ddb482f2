"""Refuses calls that the worker cannot serve in time."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from evershell.api.call import Call
from evershell.api.interceptors.errors import abort
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.method_options import (
    A2A_SERVICE,
    PUBLIC_SERVICES,
    RUNTIME_SERVICE,
    WORKSPACE_SERVICE,
    may_name_task,
    names_no_task,
)
from evershell.api.queueing_delay import Priority, QueueingDelay
from evershell.core import deadline, errors
from evershell.core.errors import Failure

_FIRST = frozenset(
    {
        *(
            f"/{WORKSPACE_SERVICE}/{name}"
            for name in ("CancelTask", "CancelTasks", "HoldOrg", "ReleaseOrg", "StopWorkspace")
        ),
        f"/{WORKSPACE_SERVICE}/GetTask",
        f"/{A2A_SERVICE}/CancelTask",
        f"/{A2A_SERVICE}/GetTask",
        f"/{RUNTIME_SERVICE}/CancelChild",
        f"/{RUNTIME_SERVICE}/GetChild",
    }
)
# How long a refused call waits for its request, which may name a task.
_READ_SECONDS = 0.1


class Admission(Interceptor):
    """Outside authentication and audit, so that a refusal costs little and leaves no entry.

    A refused call has had no effect. Calls are refused whose deadline has passed; while the worker
    is behind, the least important ones; and public calls while the worker is not ready. The edge
    calls workers that are not ready if no worker is: it cannot tell them from slow ones. Calls of
    agents are then served, because they wait for the database anyway.
    """

    def __init__(self, delay: QueueingDelay, arrived: Callable[[], None] = lambda: None) -> None:
        """`arrived` is called for each call."""
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
                message = "The deadline had passed before the call began. It had no effect."
                await abort(call, Failure("deadline_exceeded", message), method)
            if needs_database and not self.is_ready:
                await _refuse(call, method, "The service cannot reach its database.")
            if delay.refuses(priority):
                await _refuse(call, method, "The service is overloaded.")
            return await proceed(call)

        return admitted


async def _refuse(call: Call, method: Method, problem: str) -> None:
    if may_name_task(method.path) and not call.is_rest:
        call.request = await _request(call, method)
    failure = errors.refused(problem, names_no_task=names_no_task(method.path, call))
    await abort(call, failure, method)


def _priority(method: Method) -> Priority | None:
    """The priority of its calls; None for methods that are never refused."""
    if method.service not in (*PUBLIC_SERVICES, RUNTIME_SERVICE):
        return None
    if method.path in _FIRST:
        return Priority.FIRST
    if method.service == RUNTIME_SERVICE:
        return Priority.AGENTS
    if method.is_stream or method.name.startswith("List"):
        return Priority.LAST
    return Priority.OTHERS


async def _request(call: Call, method: Method) -> Any:
    """The request, to see whether it names a task; None if it does not arrive."""
    with suppress(TimeoutError, DecodeError):
        async with asyncio.timeout(_READ_SECONDS):
            message = await call.context.read()
        if message is not grpc.aio.EOF:
            return method.parse(cast(bytes, message))
    return None
