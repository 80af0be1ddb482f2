"""Reads the request of a call, within bounds on size, time and number."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

import grpc
from evershell.workspace.v1 import workspace_service_pb2
from google.protobuf.message import DecodeError, Message

from evershell.server.api.call import Call, Context
from evershell.server.api.effects import public_methods
from evershell.server.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.server.api.rest_body import merge_rest_body
from evershell.server.core.errors import Failure

# The largest message that gRPC itself takes. Committed iterations carry up to 64 KiB of tool
# output, which JSON and Unicode may widen.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# Size limit of requests to health and reflection, which contain only a name.
_COMMON_BYTES = 4096
_COMMON_SERVICES = "grpc."
# The edge's limit for all headers, the path included.
_MAX_PATH_BYTES = 60 * 1024
# How long a request may take to arrive. The edge gives a REST request 30 s and then answers 408.
_ARRIVAL_SECONDS = 35.0
# How long it may take while other calls wait for their turn.
_CONTENDED_ARRIVAL_SECONDS = 1.0
# Bounds on the total size of the requests that are being read, for a worker and for one credential.
# Each size limit has bounds of its own. A request counts with the size limit of its method, because
# its size is not known yet.
_WORKER_BYTES = 64 * 1024 * 1024
_CALLER_BYTES = 8 * 1024 * 1024

_Read = TypeVar("_Read")


class Reading(Interceptor):
    """Reads and parses the request. Innermost, so its errors are reported like any other."""

    def __init__(self) -> None:
        self._limits = request_limits()
        # Such a method is served when its message has arrived. That the request also ends with it
        # is learned from gRPC by a second read, which would take a large part of the time of a
        # short call.
        self._reads = public_methods(with_effect=False)
        # Such a method does not act on a part of what the caller has asked for.
        self._changes = public_methods(with_effect=True)
        # The turns of the worker, by size limit.
        self._by_worker: dict[int, _Turns] = {}
        # The turns of each caller, by caller and size limit, while requests of that caller are
        # being read.
        self._by_caller: WeakValueDictionary[tuple[str, int], _Turns] = WeakValueDictionary()

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        limit, has_effect = self._limit(method), method.path in self._changes
        read = _read_first if method.path in self._reads else _read_only
        of_worker = self._by_worker.get(limit)
        if of_worker is None:
            of_worker = self._by_worker[limit] = _Turns(_WORKER_BYTES // limit)

        async def read_first(call: Call) -> Any:
            of_caller = self._turns_of_caller(call, limit)
            message = await _message(lambda: read(call.context), of_caller, of_worker)
            # Over REST, the message has the path beside the body, whose size the edge has checked.
            if len(message) > (limit + _MAX_PATH_BYTES if call.is_rest else limit):
                raise _invalid(
                    f"The request has {len(message):,} bytes; this method takes {limit:,} at most."
                )
            try:
                call.request = method.parse(message)
                if has_effect and call.is_rest:
                    merge_rest_body(message, call.request)
            except DecodeError as error:
                text = "The request cannot be parsed as a message of this method's request type."
                raise _invalid(text) from error
            if has_effect and _has_unknown_fields(call.request):
                raise _invalid("The request has a field that this version does not know.")
            return await proceed(call)

        return read_first

    def _limit(self, method: Method) -> int:
        if method.service.startswith(_COMMON_SERVICES):
            return _COMMON_BYTES
        return self._limits.get(method.path, MAX_MESSAGE_BYTES)

    def _turns_of_caller(self, call: Call, limit: int) -> "_Turns":
        key = (_reader(call), limit)
        found = self._by_caller.get(key)
        if found is None:
            found = self._by_caller[key] = _Turns(_CALLER_BYTES // limit)
        return found


class _Turns:
    """Lets a bounded number of requests be read at a time; the others wait."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._waiting = 0
        # The time limits, not shortened yet, of the requests that are being read.
        self._unshortened: set[asyncio.Timeout] = set()

    async def take(self) -> None:
        """Waits for a turn."""
        if self._free.locked():
            for other in self._unshortened:
                _shorten(other)
            self._unshortened.clear()
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1

    def read_within(self, arrival: asyncio.Timeout) -> None:
        """Shortens the time limit of a request with a turn as soon as others wait for a turn."""
        if self._waiting:
            _shorten(arrival)
        else:
            self._unshortened.add(arrival)

    def end(self, arrival: asyncio.Timeout) -> None:
        """Ends the turn of the request with this time limit."""
        self._unshortened.discard(arrival)
        self._free.release()


async def _message(
    read: Callable[[], Awaitable[bytes]], of_caller: _Turns, of_worker: _Turns
) -> bytes:
    """Waits for both turns and reads. Raises Failure deadline_exceeded, validation_error."""
    try:
        return await _in_turn(of_caller, of_worker, read)
    except TimeoutError as error:
        text = "The request did not arrive in time. Send it faster, or fewer at the same time."
        raise Failure("deadline_exceeded", text) from error


async def _read_first(context: Context) -> bytes:
    """The first message of the request. Raises Failure validation_error."""
    message = await context.read()
    if message is grpc.aio.EOF:
        raise _not_one_message()
    return cast(bytes, message)


async def _read_only(context: Context) -> bytes:
    """The only message of the request. Raises Failure validation_error."""
    message = await _read_first(context)
    if await context.read() is not grpc.aio.EOF:
        raise _not_one_message()
    return message


async def _in_turn(
    of_caller: _Turns, of_worker: _Turns, read: Callable[[], Awaitable[_Read]]
) -> _Read:
    """Waits for both turns, then reads. Raises TimeoutError if this takes too long.

    The time limit is shortened only when the request has both turns, because it is not read before.
    """
    async with asyncio.timeout(_ARRIVAL_SECONDS) as arrival:
        await of_caller.take()
        try:
            await of_worker.take()
            try:
                of_caller.read_within(arrival)
                of_worker.read_within(arrival)
                return await read()
            finally:
                of_worker.end(arrival)
        finally:
            of_caller.end(arrival)


def _has_unknown_fields(request: Message) -> bool:
    """Whether a message, at any depth, has fields that its type does not declare. Removes them."""
    size = request.ByteSize()
    request.DiscardUnknownFields()
    return request.ByteSize() != size


def request_limits() -> dict[str, int]:
    """The size limit of each public method's request, in bytes, as the protos declare it."""
    service = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
    usual = service.GetOptions().Extensions[workspace_service_pb2.every_call].max_request_bytes
    limits = {}
    for method in service.methods:
        own = method.GetOptions().Extensions[workspace_service_pb2.edge].max_request_bytes
        limits[f"/{service.full_name}/{method.name}"] = own or usual
    return limits


def _reader(call: Call) -> str:
    """The credential or the agent of the call. Calls without either share one bound."""
    if call.caller is not None:
        return call.caller.key
    return call.agent.workspace_id if call.agent is not None else ""


def _shorten(arrival: asyncio.Timeout) -> None:
    if arrival.expired():
        return
    soon = asyncio.get_running_loop().time() + _CONTENDED_ARRIVAL_SECONDS
    when = arrival.when()
    arrival.reschedule(soon if when is None else min(soon, when))


def _not_one_message() -> Failure:
    return _invalid("This method takes one message.")


def _invalid(message: str) -> Failure:
    return Failure("validation_error", message, fields={})
