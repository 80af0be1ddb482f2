"""Reads the request of a call, within bounds on size, time and number."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, cast
from weakref import WeakValueDictionary

import grpc
from a2a.types import a2a_pb2
from evershell.workspace.v1 import workspace_service_pb2
from google.protobuf.message import DecodeError, Message

from evershell.api.call import Call, Context
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.method_options import (
    A2A_SERVICE,
    HEARTBEAT,
    RUNTIME_SERVICE,
    WORKSPACE_SERVICE,
    public_methods,
)
from evershell.api.rest_body import merge_rest_body
from evershell.core import errors
from evershell.core.agent_rules import BYTES_PER_SECOND, MAX_WAITING_CALLS
from evershell.core.errors import Failure

# The largest message that gRPC itself takes. Committed iterations carry up to 64 KiB of tool
# output, which JSON and Unicode may widen.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# Size limit of requests that contain only a few names: those to health and reflection, and those of
# agents except CommitEvents and the calls about children.
_COMMON_BYTES = 4096
# Size limit of calls of agents about children, which also have a turn of their own: they may wait
# for another agent, and no commit and no heartbeat waits for them.
_CHILD_BYTES = 1024 * 1024
_OF_AGENTS = {
    "CommitEvents": MAX_MESSAGE_BYTES,
    "SubmitChild": _CHILD_BYTES,
    "GetChild": _CHILD_BYTES,
    "CancelChild": _CHILD_BYTES,
}
_COMMON_SERVICES = "grpc."
# The edge's limit for all headers, the path included.
_MAX_PATH_BYTES = 60 * 1024
# A parsed message can take 50 times its size, if it has millions of empty tool calls. One message
# of agents that is larger than _LARGE_BYTES is parsed and served at a time.
_LARGE_BYTES = 256 * 1024
# The size limit of the requests of A2A that carry no message. WorkspaceService has the same for a
# cancellation.
_A2A_BYTES = 16 * 1024
# How long a request may take to arrive. The edge gives a REST request 30 s and then answers 408.
_ARRIVAL_SECONDS = 35.0
# How long it may take while other calls wait for their turn.
_CONTENDED_ARRIVAL_SECONDS = 1.0
# Bounds on the total size of the requests that are being read, for a worker and for one credential.
# Each size limit has bounds of its own. A request counts with the size limit of its method, because
# its size is not known yet.
_WORKER_BYTES = 64 * 1024 * 1024
_CALLER_BYTES = 8 * 1024 * 1024


class Reading(Interceptor):
    """Reads and parses the request. Innermost, so its errors are reported like any other."""

    def __init__(self) -> None:
        self._limits = request_limits()
        # Such a method is served when its message has arrived. That the request also ends with it
        # is learned from gRPC by a second read, which would take a large part of the time of a
        # short call.
        self._reads = {*public_methods(with_effect=False), HEARTBEAT}
        # Such a method refuses fields that it does not know: it would do only a part of what the
        # caller has asked for. A2A asks for unknown fields to be ignored, and the edge reads its
        # bodies.
        self._strict = public_methods(with_effect=True, services=[WORKSPACE_SERVICE])
        # The turns of the worker, by size limit.
        self._by_worker: dict[int, _Turns] = {}
        # The turns of each caller, by caller and size limit, while requests of that caller are
        # being read.
        self._by_caller: WeakValueDictionary[tuple[str, int], _Turns] = WeakValueDictionary()
        self._large = asyncio.Semaphore(1)

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        limit, is_strict = self._limit(method), method.path in self._strict
        read = _read_first if method.path in self._reads else _read_only
        of_worker = self._by_worker.get(limit)
        if of_worker is None:
            of_worker = self._by_worker[limit] = _Turns(_WORKER_BYTES // limit)

        async def serve(call: Call, message: bytes) -> Any:
            # Over REST, the message has the path beside the body, whose size the edge has checked.
            if len(message) > (limit + _MAX_PATH_BYTES if call.is_rest else limit):
                raise _invalid(
                    f"The request has {len(message):,} bytes; this method takes {limit:,} at most."
                )
            try:
                call.request = method.parse(message)
                if is_strict and call.is_rest:
                    merge_rest_body(message, call.request)
            except DecodeError as error:
                text = "The request cannot be parsed as a message of this method's request type."
                raise _invalid(text) from error
            if is_strict and _has_unknown_fields(call.request):
                raise _invalid("The request has a field that this version does not know.")
            return await proceed(call)

        async def read_first(call: Call) -> Any:
            turns = (self._turns_of_caller(call, limit, _CALLER_BYTES // limit), of_worker)
            message = await _message(lambda: read(call.context), *turns)
            for each in turns:
                each.release()
            return await serve(call, message)

        async def read_of_agent(call: Call) -> Any:
            """Serves one call of the agent at a time. The next one is read when it has ended."""
            of_agent = self._turns_of_caller(call, limit, 1)
            if of_agent.waiting >= MAX_WAITING_CALLS:
                raise errors.rate_limited("The agent makes too many calls at the same time.", 1)
            message = await _message(lambda: read(call.context), of_agent, of_worker)
            try:
                async with self._large if len(message) > _LARGE_BYTES else nullcontext():
                    return await serve(call, message)
            finally:
                of_worker.release()
                asyncio.get_running_loop().call_later(
                    len(message) / BYTES_PER_SECOND, of_agent.release
                )

        return read_of_agent if method.service == RUNTIME_SERVICE else read_first

    def _limit(self, method: Method) -> int:
        if method.service.startswith(_COMMON_SERVICES):
            return _COMMON_BYTES
        if method.service == RUNTIME_SERVICE:
            return _OF_AGENTS.get(method.name, _COMMON_BYTES)
        return self._limits.get(method.path, MAX_MESSAGE_BYTES)

    def _turns_of_caller(self, call: Call, limit: int, at_once: int) -> "_Turns":
        key = (_reader(call), limit)
        turns = self._by_caller.get(key)
        if turns is None:
            turns = self._by_caller[key] = _Turns(at_once)
        return turns


class _Turns:
    """Lets a bounded number of requests be read at a time; the others wait."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self.waiting = 0
        # The time limits, not shortened yet, of the requests that are being read.
        self._unshortened: set[asyncio.Timeout] = set()

    async def take(self) -> None:
        if self._free.locked():
            for other in self._unshortened:
                _shorten(other)
            self._unshortened.clear()
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1

    def read_within(self, arrival: asyncio.Timeout) -> None:
        """Shortens the time limit of a request with a turn as soon as others wait for a turn."""
        if self.waiting:
            _shorten(arrival)
        else:
            self._unshortened.add(arrival)

    def has_read(self, arrival: asyncio.Timeout) -> None:
        """Notes that the request with this time limit has arrived or was given up."""
        self._unshortened.discard(arrival)

    def release(self) -> None:
        self._free.release()


async def _message(read: Callable[[], Awaitable[bytes]], *turns: _Turns) -> bytes:
    """Takes all turns and reads. The caller releases the turns, except after an error.

    The time limit is shortened only when the request has its turns, because it is not read before.
    Raises Failure deadline_exceeded, validation_error.
    """
    taken: list[_Turns] = []
    try:
        async with asyncio.timeout(_ARRIVAL_SECONDS) as arrival:
            for each in turns:
                await each.take()
                taken.append(each)
            try:
                for each in turns:
                    each.read_within(arrival)
                return await read()
            finally:
                for each in turns:
                    each.has_read(arrival)
    except BaseException as error:
        for each in taken:
            each.release()
        if isinstance(error, TimeoutError):
            text = "The request did not arrive in time. Send it faster, or fewer at the same time."
            raise Failure("deadline_exceeded", text) from error
        raise


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
    for method in a2a_pb2.DESCRIPTOR.services_by_name["A2AService"].methods:
        carries_message = method.name in ("SendMessage", "SendStreamingMessage")
        limits[f"/{A2A_SERVICE}/{method.name}"] = usual if carries_message else _A2A_BYTES
    return limits


def _reader(call: Call) -> str:
    """The credential or the agent of the call. Calls without either share one bound."""
    if call.caller is not None:
        return call.caller.key
    # An agent whose epoch is over must not take the turns of the next one.
    return f"{call.agent.workspace_id}/{call.agent.epoch}" if call.agent is not None else ""


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
