"""Turns exceptions into the status and the REST envelope."""

import asyncio
import math
from contextlib import suppress
from typing import Any

import grpc
import structlog
from evershell.workspace.v1 import workspace_service_pb2
from grpc_status import rpc_status

from server.api import call as calls
from server.api import status
from server.api.call import ENVELOPE_TRAILER, STATUS_HEADER
from server.api.interceptors.interceptor import Context, Details, Interceptor, Proceed
from server.core import errors
from server.core.errors import Failure, UnavailableError
from server.telemetry.logs import Sampler

log = structlog.get_logger()


class Errors(Interceptor):
    """Aborts a failed call with the failure's status.

    An unexpected exception is logged. Callers receive `internal` without its text.
    """

    def __init__(self) -> None:
        # A caller can repeat a request that triggers a defect any number of times.
        self._sampler = Sampler()

    async def around(self, details: Details, context: Context, proceed: Proceed) -> Any:
        try:
            return await proceed()
        except Failure as failure:
            await _abort(context, failure)
        except UnavailableError:
            await _abort(context, errors.unavailable())
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                # The caller cancelled the call, or the server ends it.
                raise
            # A defect in an inner interceptor or the servicer raised it. If it were raised again,
            # the call would end without a status.
            await self._abort_for_defect(context, details)
        except Exception:  # noqa: BLE001 - logged, with its traceback
            await self._abort_for_defect(context, details)

    async def _abort_for_defect(self, context: Context, details: Details) -> None:
        repeats = self._sampler.admit("defect")
        if repeats is not None:
            request_id = calls.current().request_id
            log.exception(
                "unexpected_error", method=details.method, request_id=request_id, **repeats
            )
        message = "The service has a defect; the request id finds it in our log."
        await _abort(context, Failure("internal", message))


async def _abort(context: Context, failure: Failure) -> None:
    call = calls.current()
    call.slug = failure.slug
    if call.has_streamed:
        # The edge ends a broken stream with status 200, so the last message carries the error.
        error = status.stream_error(failure, call.request_id)
        # Fails if the client has not read the previous message. The status has the error too.
        with suppress(grpc.aio.InternalError):
            await context.write(workspace_service_pb2.WatchEventsResponse(error=error))
    rich = rpc_status.to_status(status.rich_status(failure, call.request_id))
    trailers = [*rich.trailing_metadata, ("x-request-id", call.request_id)]
    if call.is_rest:
        trailers += [
            (STATUS_HEADER, str(status.RULES[failure.slug].http)),
            (ENVELOPE_TRAILER, status.envelope_json(failure, call.request_id)),
        ]
    if failure.slug == "unauthenticated":
        trailers.append(("www-authenticate", "Bearer"))
    if "retry_after_seconds" in failure.details:
        trailers.append(("retry-after", str(math.ceil(failure.details["retry_after_seconds"]))))
    await context.abort(rich.code, rich.details, tuple(trailers))
