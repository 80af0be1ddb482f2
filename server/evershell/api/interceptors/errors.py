"""Turns exceptions into the status and the REST envelope."""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import grpc
import structlog
from evershell.workspace.v1 import error_pb2, workspace_service_pb2
from google.protobuf.message import Message

from evershell.api import event_stream, status
from evershell.api.call import ENVELOPE_TRAILER, STATUS_HEADER, Call
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.method_options import RUNTIME_SERVICE, repeat_advice
from evershell.core import errors
from evershell.core.errors import Failure, UnavailableError
from evershell.pod.tokens import SLUG_TRAILER, TIME_TRAILER
from evershell.telemetry.logs import Sampler

log = structlog.get_logger()

# How long to wait for gRPC to report a reset: much longer than gRPC takes on an idle machine, but
# too short for a caller to notice.
_RESET_REPORTED_SECONDS = 0.002
# How long gRPC may take to report that a caller has gone, after a message could not be sent to the
# caller. The time is long, because thousands of callers may go at once.
_GONE_REPORTED_SECONDS = 10.0

# By method: the function that makes the last message of a stream, if the stream fails after its
# first message.
_LAST_MESSAGES: Mapping[str, Callable[[error_pb2.Error], Message]] = {
    "WatchEvents": lambda error: workspace_service_pb2.WatchEventsResponse(error=error),
    "StreamEvents": event_stream.error_frame,
    "WatchOrganization": lambda error: workspace_service_pb2.WatchOrganizationResponse(error=error),
    "StreamOrganization": event_stream.organization_error_frame,
}


class Errors(Interceptor):
    """Aborts a failed call with the failure's status.

    An unexpected exception is logged. Callers receive `internal`, without the exception's text.
    """

    def __init__(self) -> None:
        # Limits the log lines, because a caller can repeat a request that triggers a defect.
        self._sampler = Sampler()

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        async def guarded(call: Call) -> Any:
            try:
                return await proceed(call)
            except Failure as failure:
                await abort(call, failure, method)
            except UnavailableError:
                await abort(call, errors.unavailable(repeat_advice(method.path, call)), method)
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    # The caller has cancelled the call, or the server is ending it.
                    raise
                # A defect in an inner interceptor or in the servicer has raised this error. If it
                # were raised again, the call would end without a status.
                await self._abort_for_defect(call, method)
            except grpc.aio.InternalError:
                # The message could not be sent, because the caller has gone. gRPC cancels this task
                # during the sleep.
                await asyncio.sleep(_GONE_REPORTED_SECONDS)
                await self._abort_for_defect(call, method)
            except Exception:  # noqa: BLE001 - logged, with its traceback
                await self._abort_for_defect(call, method)

        return guarded

    async def _abort_for_defect(self, call: Call, method: Method) -> None:
        repeats = self._sampler.admit("defect")
        if repeats is not None:
            log.exception(
                "unexpected_error", method=method.path, request_id=call.request_id, **repeats
            )
        await abort(call, errors.internal(repeat_advice(method.path, call)), method)


async def abort(call: Call, failure: Failure, method: Method) -> None:
    """Ends the call with the status of the failure. Raises AbortError."""
    # If the caller has reset the call, gRPC reports this during the sleep, and the call ends here.
    # Without the sleep, gRPC would never free the status of such a call
    # (https://github.com/grpc/grpc/issues/43360).
    await asyncio.sleep(_RESET_REPORTED_SECONDS)
    call.slug = failure.slug
    context = call.context
    if call.has_streamed and (message := _LAST_MESSAGES.get(method.name)) is not None:
        # The edge ends a broken stream with status 200, so the last message carries the error.
        error = message(status.stream_error(failure, call.request_id))
        # The write fails if the client has not read the previous message. The status carries the
        # error too.
        with suppress(grpc.aio.InternalError):
            await context.write(error)
    rich = method.form.rich_status(failure, call.request_id)
    trailers = [
        (status.DETAILS_TRAILER, rich.SerializeToString()),
        ("x-request-id", call.request_id),
    ]
    if call.is_rest:
        body = method.form.body(failure, call.request_id)
        http = method.form.http_status(failure)
        trailers += [(STATUS_HEADER, str(http)), (ENVELOPE_TRAILER, body)]
        if status.RULES[failure.slug].no_retry or repeat_advice(method.path, call):
            trailers.append(("x-should-retry", "false"))
    if method.service == RUNTIME_SERVICE:
        # Agents do not have the package that decodes the details, so they get the slug separately.
        trailers.append((SLUG_TRAILER, failure.slug))
    if failure.slug == "unauthenticated":
        trailers.append(("www-authenticate", "Bearer"))
    if "unix_seconds" in failure.details:
        trailers.append((TIME_TRAILER, str(failure.details["unix_seconds"])))
    if "retry_after_seconds" in failure.details:
        trailers.append(("retry-after", str(math.ceil(failure.details["retry_after_seconds"]))))
    await context.abort(status.GRPC_CODES[failure.slug], failure.message, tuple(trailers))
