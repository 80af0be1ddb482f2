"""Reads the request of a call, within bounds on size, time and number.

gRPC reads the request of a unary method before it calls the handler, so a caller without a
credential could make a worker buffer it. `Reading` therefore registers every method with gRPC as
one that takes a stream, and reads the single message itself, after the other interceptors.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, cast
from weakref import WeakValueDictionary

import grpc
from evershell.workspace.v1 import workspace_service_pb2
from google.protobuf.message import DecodeError

from server.api import call as calls
from server.api.interceptors.interceptor import Context, Continuation, Details, Handler
from server.core.errors import Failure

# The largest message that gRPC itself takes. Committed iterations carry up to 64 KiB of tool
# output, which JSON and Unicode may widen.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# Size limit of requests to health and reflection, which contain only a name.
_COMMON_BYTES = 4096
_COMMON_SERVICES = "/grpc."
# How long a request may take to arrive. The edge gives a REST request 30 s and then answers 408.
_ARRIVAL_SECONDS = 35.0
# How long it may take while other calls wait for their turn.
_CONTENDED_ARRIVAL_SECONDS = 1.0
# Bounds on the total size of the requests that are being read, for a worker and for one credential.
# Each size limit has bounds of its own. A request counts with the size limit of its method, because
# its size is not known yet.
_WORKER_BYTES = 64 * 1024 * 1024
_CALLER_BYTES = 8 * 1024 * 1024


class Reading(grpc.aio.ServerInterceptor):
    """Reads and parses the request. Innermost, so its errors are reported like any other."""

    def __init__(self) -> None:
        self._limits = request_limits()
        # The turns of the worker, by size limit.
        self._by_worker: dict[int, _Turns] = {}
        # The turns of each caller, by caller and size limit, while requests of that caller are
        # being read.
        self._by_caller: WeakValueDictionary[tuple[str, int], _Turns] = WeakValueDictionary()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: Details
    ) -> "Handler | None":
        """Turns a handler of one request into a handler of a stream that holds one request."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler
        method, parse = handler_call_details.method, handler.request_deserializer
        serialize = handler.response_serializer
        if handler.unary_stream is not None:
            behavior = cast(Callable[[Any, Context], Any], handler.unary_stream)

            async def stream(_messages: object, context: Context) -> AsyncIterator[Any]:
                produced = behavior(await self._request(method, parse, context), context)
                if not hasattr(produced, "__aiter__"):
                    await produced
                    return
                async with aclosing(cast(AsyncGenerator[Any, None], produced)):
                    async for message in produced:
                        yield message

            return grpc.stream_stream_rpc_method_handler(stream, response_serializer=serialize)
        unary_behavior = cast(Callable[[Any, Context], Any], handler.unary_unary)

        async def unary(_messages: object, context: Context) -> Any:
            return await unary_behavior(await self._request(method, parse, context), context)

        return grpc.stream_unary_rpc_method_handler(unary, response_serializer=serialize)

    async def _request(self, method: str, parse: Callable[[bytes], Any], context: Context) -> Any:
        limit = self._limit(method)
        of_worker, of_caller = self._turns(limit)
        try:
            async with _being_read(of_caller, of_worker):
                message = await context.read()
                has_ended = message is grpc.aio.EOF or await context.read() is grpc.aio.EOF
        except TimeoutError as error:
            text = "The request did not arrive in time. Send it faster, or fewer at the same time."
            raise Failure("deadline_exceeded", text) from error
        if message is grpc.aio.EOF or not has_ended:
            raise _invalid("This method takes one message.")
        if len(message) > limit:
            raise _invalid(
                f"The request has {len(message):,} bytes; this method takes {limit:,} at most."
            )
        try:
            return parse(message)
        except DecodeError as error:
            text = "The request cannot be parsed as a message of this method's request type."
            raise _invalid(text) from error

    def _limit(self, method: str) -> int:
        if method.startswith(_COMMON_SERVICES):
            return _COMMON_BYTES
        return self._limits.get(method, MAX_MESSAGE_BYTES)

    def _turns(self, limit: int) -> "tuple[_Turns, _Turns]":
        if limit not in self._by_worker:
            self._by_worker[limit] = _Turns(_WORKER_BYTES // limit)
        key = (_caller(), limit)
        of_caller = self._by_caller.get(key)
        if of_caller is None:
            of_caller = self._by_caller[key] = _Turns(_CALLER_BYTES // limit)
        return self._by_worker[limit], of_caller


class _Turns:
    """Lets a bounded number of requests be read at a time; the others wait."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._waiting = 0
        # The time limits, not shortened yet, of the requests that are being read.
        self._unshortened: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn and holds it for the duration of the context."""
        if self._free.locked():
            for other in self._unshortened:
                _shorten(other)
            self._unshortened.clear()
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()

    @contextmanager
    def shortening(self, arrival: asyncio.Timeout) -> Iterator[None]:
        """Shortens the time limit of the current request as soon as others wait for a turn."""
        if self._waiting:
            _shorten(arrival)
        else:
            self._unshortened.add(arrival)
        try:
            yield
        finally:
            self._unshortened.discard(arrival)


@asynccontextmanager
async def _being_read(of_caller: _Turns, of_worker: _Turns) -> AsyncIterator[None]:
    """Waits for both turns. Raises TimeoutError if the request takes too long to arrive.

    The time limit is shortened only when the request has both turns, because it is not read before.
    """
    async with asyncio.timeout(_ARRIVAL_SECONDS) as arrival, of_caller.turn(), of_worker.turn():
        with of_caller.shortening(arrival), of_worker.shortening(arrival):
            yield


def request_limits() -> dict[str, int]:
    """The size limit of each public method's request, in bytes, as the protos declare it."""
    service = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
    usual = service.GetOptions().Extensions[workspace_service_pb2.every_call].max_request_bytes
    limits = {}
    for method in service.methods:
        own = method.GetOptions().Extensions[workspace_service_pb2.edge].max_request_bytes
        limits[f"/{service.full_name}/{method.name}"] = own or usual
    return limits


def _caller() -> str:
    """The credential or the agent of the call. Calls without either share one bound."""
    call = calls.current()
    if call.caller is not None:
        return call.caller.key
    return call.agent.workspace_id if call.agent is not None else ""


def _shorten(arrival: asyncio.Timeout) -> None:
    if arrival.expired():
        return
    soon = asyncio.get_running_loop().time() + _CONTENDED_ARRIVAL_SECONDS
    when = arrival.when()
    arrival.reschedule(soon if when is None else min(soon, when))


def _invalid(message: str) -> Failure:
    return Failure("validation_error", message, fields={})
