"""The interceptors of every call: log, errors, deadline, authentication. server.py lists them in
order.
"""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Any, TypeAlias, cast

import grpc
import structlog
from evershell.workspace.v1 import workspace_service_pb2
from grpc_status import rpc_status

from server.api import call as calls
from server.api import status
from server.api.call import STATUS_HEADER, Call
from server.auth.authenticator import Authenticator, HostBinding, bearer_token
from server.auth.pod_tokens import PodTokens
from server.core import deadline, errors, trace
from server.core.errors import Failure, UnavailableError
from server.core.trace import TraceContext
from server.logs import Sampler

log = structlog.get_logger()

# Set by the REST listener of the edge, and stripped by its gRPC listener: the answer then carries
# the envelope too.
EDGE_HEADER = "x-evershell-edge"
# The host that the client asked for, as the edge saw it.
HOST_HEADER = "x-evershell-host"
ENVELOPE_TRAILER = "x-evershell-error"
# A stream may outlive its credential, which is looked at again this often. With the time for which
# a key is remembered, it stays within the 10 s that are promised.
RECHECK_SECONDS = 3.0

Context = grpc.aio.ServicerContext[Any, Any]
# grpcio's own class takes no parameters when the program runs; its stubs' does.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]]


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every call, unary or streaming: `around` awaits the rest of the call.

    `Reading` is the innermost interceptor, so every handler here takes a stream of requests, as
    bytes.
    """

    async def around(
        self,
        details: grpc.HandlerCallDetails,
        context: Context,
        proceed: Callable[[], Awaitable[Any]],
    ) -> Any:
        """Awaits `proceed` and returns what it returned."""
        raise NotImplementedError

    async def around_stream(
        self,
        details: grpc.HandlerCallDetails,
        context: Context,
        proceed: Callable[[], Awaitable[Any]],
    ) -> Any:
        """The same for a stream of answers, where that differs."""
        return await self.around(details, context, proceed)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Wraps the method's handler."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is not None:
            # A method that is declared with a stream of requests: reflection.
            return handler
        if handler.stream_stream is not None:
            return self._wrap_stream(handler, handler_call_details)
        behavior = cast(Callable[[Any, Context], Awaitable[Any]], handler.stream_unary)

        async def unary(messages: Any, context: Context) -> Any:
            return await self.around(
                handler_call_details, context, lambda: behavior(messages, context)
            )

        return grpc.stream_unary_rpc_method_handler(
            unary, response_serializer=handler.response_serializer
        )

    def _wrap_stream(self, handler: "Handler", details: grpc.HandlerCallDetails) -> "Handler":
        """A stream writes its messages itself, so that what goes around it is the same as around a
        unary call.
        """
        behavior = cast(Callable[[Any, Context], Any], handler.stream_stream)

        async def stream(messages: Any, context: Context) -> None:
            async def run() -> None:
                produced = behavior(messages, context)
                if hasattr(produced, "__aiter__"):
                    # Closed here and now: else a watcher that has stopped reading keeps it, and all
                    # that it holds.
                    async with aclosing(cast(AsyncGenerator[Any, None], produced)):
                        async for message in produced:
                            await context.write(message)
                            calls.current().has_streamed = True
                else:
                    await produced

            await self.around_stream(details, context, run)

        return grpc.stream_stream_rpc_method_handler(
            stream, response_serializer=handler.response_serializer
        )


class RequestLog(Interceptor):
    """Outermost: gives the call its request id, and writes its one log line, whatever becomes of
    it.
    """

    def __init__(self) -> None:
        # Calls of our own services that were taken so far.
        self.taken = 0
        self._sampler = Sampler()

    async def around(
        self,
        details: grpc.HandlerCallDetails,
        context: Context,
        proceed: Callable[[], Awaitable[Any]],
    ) -> Any:
        """See Interceptor."""
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
        self.taken += details.method.startswith("/evershell.")
        trace.begin(TraceContext.parse(metadata.get(trace.HEADER)))
        call.trace_id = trace.current_id()
        context.set_trailing_metadata((("x-request-id", call.request_id),))
        began = time.perf_counter()
        outcome = "caller_gone"
        try:
            answer = await proceed()
            outcome = "ok"
            return answer
        except grpc.aio.AbortError:
            outcome = call.slug or "failed"
            raise
        finally:
            self._write(call, outcome, time.perf_counter() - began)

    def _write(self, call: Call, outcome: str, seconds: float) -> None:
        """Writes the line of the call. Unauthenticated and refused calls are limited to a rate for
        each outcome.
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


class Errors(Interceptor):
    """Turns whatever is raised further in into the status and the envelope; nothing of an
    unforeseen exception gets out.
    """

    def __init__(self) -> None:
        # A caller can repeat a request that triggers a defect any number of times.
        self._sampler = Sampler()

    async def around(
        self,
        details: grpc.HandlerCallDetails,
        context: Context,
        proceed: Callable[[], Awaitable[Any]],
    ) -> Any:
        """See Interceptor."""
        try:
            return await proceed()
        except Failure as failure:
            await _fail(context, failure)
        except UnavailableError:
            await _fail(context, errors.unavailable())
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            # The caller's doing, or the server's; else something further in has let it slip, which
            # would end the call mutely.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            await self._fail_by_defect(context, details)
        except Exception:  # noqa: BLE001 - logged, with its traceback
            await self._fail_by_defect(context, details)

    async def _fail_by_defect(self, context: Context, details: grpc.HandlerCallDetails) -> None:
        repeats = self._sampler.admit("defect")
        if repeats is not None:
            log.exception(
                "a defect", method=details.method, request_id=calls.current().request_id, **repeats
            )
        await _fail(
            context,
            Failure("internal", "The service has a defect; the request id finds it in our log."),
        )


async def _fail(context: Context, failure: Failure) -> None:
    call = calls.current()
    call.slug = failure.code
    if call.has_streamed:
        # The edge ends a broken stream with a clean 200, so the last message has to tell.
        error = status.stream_error(failure, call.request_id)
        # A watcher that has not taken the message before cannot be sent another: it is told by the
        # status alone.
        with suppress(grpc.aio.InternalError):
            await context.write(workspace_service_pb2.WatchEventsResponse(error=error))
    rich = rpc_status.to_status(status.rich_status(failure, call.request_id))
    trailers = [*rich.trailing_metadata, ("x-request-id", call.request_id)]
    if call.is_rest:
        rule = status.RULES[failure.code]
        trailers += [
            (STATUS_HEADER, str(rule.http)),
            (ENVELOPE_TRAILER, status.envelope_json(failure, call.request_id)),
        ]
    if failure.code == "unauthenticated":
        trailers.append(("www-authenticate", "Bearer"))
    if "retry_after_seconds" in failure.details:
        trailers.append(("retry-after", str(math.ceil(failure.details["retry_after_seconds"]))))
    await context.abort(rich.code, rich.details, tuple(trailers))


class Deadline(Interceptor):
    """Notes how long the caller still waits, for whatever waits further in."""

    async def around(
        self,
        details: grpc.HandlerCallDetails,
        context: Context,
        proceed: Callable[[], Awaitable[Any]],
    ) -> Any:
        """See Interceptor."""
        deadline.begin(context.time_remaining())
        return await proceed()


class Authentication(Interceptor):
    """Finds out who calls, before the request is even parsed.

    Which kind of credential opens which service is one table; what is not in it is closed.
    """

    def __init__(
        self, authenticator: Authenticator, pod_tokens: PodTokens, host_binding: HostBinding | None
    ) -> None:
        self._authenticator = authenticator
        self._pod_tokens = pod_tokens
        self._host_binding = host_binding
        self._by_service: dict[str, Callable[[Call], Awaitable[None]]] = {
            "evershell.workspace.v1.WorkspaceService": self._caller,
            "evershell.agent.v1.RuntimeService": self._agent,
            "grpc.health.v1.Health": _anyone,
            "grpc.reflection.v1.ServerReflection": _anyone,
            "grpc.reflection.v1alpha.ServerReflection": _anyone,
        }

    async def around(
        self,
        details: grpc.HandlerCallDetails,
        context: Context,
        proceed: Callable[[], Awaitable[Any]],
    ) -> Any:
        """See Interceptor."""
        await self._by_service[details.method.split("/")[1]](calls.current())
        return await proceed()

    async def around_stream(
        self,
        details: grpc.HandlerCallDetails,
        context: Context,
        proceed: Callable[[], Awaitable[Any]],
    ) -> Any:
        """See Interceptor. A stream ends when its credential does: when the key is revoked, or the
        session has expired.
        """
        streaming = asyncio.ensure_future(self.around(details, context, proceed))
        try:
            while not (await asyncio.wait((streaming,), timeout=RECHECK_SECONDS))[0]:
                # What cannot be asked now is asked the next time.
                with suppress(UnavailableError):
                    await self._by_service[details.method.split("/")[1]](calls.current())
            return streaming.result()
        finally:
            streaming.cancel()
            await asyncio.gather(streaming, return_exceptions=True)

    async def _caller(self, call: Call) -> None:
        call.caller = await self._authenticator.authenticate(call.metadata.get("authorization"))
        host = call.metadata.get(HOST_HEADER)
        if self._host_binding is not None and host:
            await self._host_binding.check(call.caller, host)

    async def _agent(self, call: Call) -> None:
        call.agent = self._pod_tokens.identify(bearer_token(call.metadata.get("authorization")))


async def _anyone(call: Call) -> None:
    """Needs no token."""
