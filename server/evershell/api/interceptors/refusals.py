"""The failures of calls that are refused before their request is read.

A program must not repeat a CancelTask without a task id, because the repeat could cancel the next
task. Only the request of a gRPC call shows whether the call names a task, so the request is read to
find out.
"""

import asyncio
from contextlib import suppress
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Method
from evershell.api.method_options import may_name_task, names_no_task
from evershell.core import errors
from evershell.core.errors import Failure

# How long a refused call waits for its request.
_READ_SECONDS = 0.1


async def unavailable(call: Call, method: Method, problem: str) -> Failure:
    """Returns the failure of a call that the service cannot serve now."""
    return errors.refused(problem, names_no_task=await _names_no_task(call, method))


async def rate_limited(
    call: Call, method: Method, problem: str, retry_after_seconds: int, **facts: Any
) -> Failure:
    """Returns the failure of a call whose caller makes too many calls."""
    if await _names_no_task(call, method):
        return errors.rate_limited(problem, None, **facts)
    return errors.rate_limited(problem, retry_after_seconds, **facts)


async def _names_no_task(call: Call, method: Method) -> bool:
    if may_name_task(method.path) and not call.is_rest:
        call.request = await _request(call, method)
    return names_no_task(method.path, call)


async def _request(call: Call, method: Method) -> Any:
    """The request; None if it does not arrive in time or is malformed."""
    with suppress(TimeoutError, DecodeError):
        async with asyncio.timeout(_READ_SECONDS):
            message = await call.context.read()
        if message is not grpc.aio.EOF:
            return method.parse(cast(bytes, message))
    return None
