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

from evershell.api.call import LARGE_BODY_HEADER, Call, Context
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.interceptors.shares import RETRY_SECONDS, Kind, Places, Shares, kind_of
from evershell.api.method_options import (
    A2A_SERVICE,
    HEARTBEAT,
    RUNTIME_SERVICE,
    SCOPE_CHECKS,
    WORKSPACE_SERVICE,
    names_no_task,
    public_methods,
)
from evershell.api.rest_body import merge_rest_body
from evershell.core import errors
from evershell.core.agent_rules import BYTES_PER_SECOND, MAX_WAITING_CALLS
from evershell.core.caller import Caller
from evershell.core.errors import Failure
from evershell.core.runtime import AgentIdentity

# The size limit of every message. gRPC itself refuses larger messages.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# The size limit of requests that contain only a few names: requests to health and reflection, and
# requests of agents except CommitEvents and the calls about children.
_COMMON_BYTES = 4096
# The size limit of the calls of agents about children of their tasks. These calls may wait for
# another agent. Only calls with the same size limit take turns with each other, so heartbeats, and
# commits of at most _LARGE_BYTES, do not wait for these calls.
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
# Messages of agents that are larger than this are parsed and served one at a time: once parsed, a
# message with millions of empty tool calls takes 50 times its size in memory. If the request of a
# caller is larger than this, it may keep its place (shares.py) until the call ends.
_LARGE_BYTES = 256 * 1024
# How long a request may take to arrive. The edge gives a REST request 30 s and then answers 408.
_ARRIVAL_SECONDS = 35.0
# A request that has not arrived after this time is slow, and needs a place for large or slow bodies
# (shares.py).
_QUICK_SECONDS = 0.1
# How long an agent's request may take to arrive while other calls wait for their turn.
_CONTENDED_ARRIVAL_SECONDS = 1.0
# How many bytes of agents' requests a worker reads at a time, for each size limit. Each request
# counts with the size limit of its method, because its own size is not known yet.
_AGENTS_BYTES = 64 * 1024 * 1024


class Reading(Interceptor):
    """Reads and parses the request. Runs innermost, so all other interceptors see its errors."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._limits = request_limits()
        # These methods are served as soon as one message has arrived. A second read would show
        # whether more messages follow, but would take a large part of the time of a short call.
        self._reads = {*public_methods(with_effect=False), HEARTBEAT}
        # These methods refuse unknown fields. Otherwise they would do only a part of what the
        # caller asks for. No method of A2A is among them, because A2A requires servers to ignore
        # unknown fields.
        self._strict = public_methods(with_effect=True, services=[WORKSPACE_SERVICE])
        # The turns that all agents share, by size limit.
        self._by_limit: dict[int, _Turns] = {}
        # The turn of each agent, by agent and size limit. Kept only while the agent has calls.
        self._by_agent: WeakValueDictionary[tuple[AgentIdentity, int], _Turns] = (
            WeakValueDictionary()
        )
        self._large = asyncio.Semaphore(1)

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        limit, is_strict = self._limit(method), method.path in self._strict
        read = _read_first if method.path in self._reads else _read_only

        def parse(call: Call, message: bytes) -> None:
            # Over REST, the message has the path in addition to the body. The edge has checked the
            # body's size.
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

        if method.service == RUNTIME_SERVICE:
            return self._of_agents(read, limit, parse, proceed)
        places, check = self._shares.bodies(method), SCOPE_CHECKS.get(method.path)
        has_place_of_edge = kind_of(method) is Kind.OTHERS

        async def read_and_serve(call: Call) -> Any:
            with _Body(call, method, places, check) as body:
                try:
                    async with body.arrival:
                        message = await read(call.context)
                except TimeoutError as error:
                    raise body.failure or _not_in_time() from error
                if body.is_large and (has_place_of_edge or len(message) > _LARGE_BYTES):
                    # A request that the edge announces as large keeps its place until the call ends
                    # in two cases: if the call counts against the edge's own limit for large calls,
                    # or if the request takes much memory. Urgent calls, streams, and calls that
                    # wait for the end of a task do not count against the edge's limit.
                    parse(call, message)
                    return await proceed(call)
            parse(call, message)
            # Frees memory: there may be thousands of streams, which may last for days.
            del body, message
            return await proceed(call)

        return read_and_serve

    def _of_agents(
        self,
        read: Callable[[Context], Awaitable[bytes]],
        limit: int,
        parse: Callable[[Call, bytes], None],
        proceed: Handler,
    ) -> Handler:
        """Returns a handler that serves each agent's calls with this size limit one at a time.

        The next call of an agent is read only after the previous one has ended.
        """
        of_worker = self._by_limit.get(limit)
        if of_worker is None:
            of_worker = self._by_limit[limit] = _Turns(_AGENTS_BYTES // limit)

        async def read_of_agent(call: Call) -> Any:
            # The key includes the epoch, so an agent of an earlier epoch does not take the turns of
            # its successor.
            assert call.agent is not None, "authentication sets it"
            of_agent = self._by_agent.get((call.agent, limit))
            if of_agent is None:
                of_agent = self._by_agent[call.agent, limit] = _Turns(1)
            if of_agent.waiting >= MAX_WAITING_CALLS:
                raise errors.rate_limited("The agent makes too many calls at the same time.", 1)
            message = await _message(lambda: read(call.context), of_agent, of_worker)
            try:
                async with self._large if len(message) > _LARGE_BYTES else nullcontext():
                    parse(call, message)
                    return await proceed(call)
            finally:
                of_worker.release()
                asyncio.get_running_loop().call_later(
                    len(message) / BYTES_PER_SECOND, of_agent.release
                )

        return read_of_agent

    def _limit(self, method: Method) -> int:
        if method.service.startswith(_COMMON_SERVICES):
            return _COMMON_BYTES
        if method.service == RUNTIME_SERVICE:
            return _OF_AGENTS.get(method.name, _COMMON_BYTES)
        return self._limits.get(method.path, MAX_MESSAGE_BYTES)


class _Body:
    """The place that a large or slow request holds while it arrives.

    Over REST, some large requests also keep the place while they are served (`read_and_serve`).
    Unless the edge announces it as large, a request that arrives quickly needs no place, so small
    requests that arrive quickly are never refused for lack of a place.
    """

    __slots__ = (
        "_call",
        "_check",
        "_method",
        "_places",
        "_taken",
        "_timer",
        "arrival",
        "failure",
        "is_large",
    )

    def __init__(
        self, call: Call, method: Method, places: Places, check: Callable[[Caller], object] | None
    ) -> None:
        self._call = call
        self._method = method
        self._places = places
        self._check = check
        self._taken: tuple[str, str, str] | None = None
        # Whether the edge announces a large body.
        self.is_large = LARGE_BODY_HEADER in call.metadata
        # The time limit of the reading. If the request does not get a place, the limit is set to
        # the current time, which ends the reading.
        self.arrival = asyncio.timeout(None)
        # Why the request did not get a place.
        self.failure: Failure | None = None

    def __enter__(self) -> "_Body":
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(0 if self.is_large else _QUICK_SECONDS, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        if self._taken is not None:
            self._places.free(self._taken)

    def _take(self) -> None:
        """Checks the scope and takes the place, or ends the reading."""
        now, caller = asyncio.get_running_loop().time(), self._call.caller
        try:
            if self._check is not None and caller is not None:
                self._check(caller)
            taken = self._places.take(caller)
            if isinstance(taken, str):
                unnamed = names_no_task(self._method.path, self._call)
                raise errors.rate_limited(taken, None if unnamed else RETRY_SECONDS)
        except Failure as failure:
            self.failure = failure
            self.arrival.reschedule(now)
        else:
            self._taken = taken
            self.arrival.reschedule(now + _ARRIVAL_SECONDS)


class _Turns:
    """Bounds how many requests are read and served at a time: a request waits for its turn."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self.waiting = 0
        # The time limits of the requests that are being read, except those already shortened.
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
        """Shortens the time limit of a request that has its turn, now or when another must wait."""
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
    """Takes a turn from each of `turns`, and reads the message.

    After an error, the turns are released here; otherwise, the caller must release them. The time
    limit is shortened only once the request has its turns, because the reading begins only then.
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
            raise _not_in_time() from error
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
    # A request of A2A without a message has the size limit of a cancellation.
    small = limits[f"/{service.full_name}/CancelTask"]
    for method in a2a_pb2.DESCRIPTOR.services_by_name["A2AService"].methods:
        carries_message = method.name in ("SendMessage", "SendStreamingMessage")
        limits[f"/{A2A_SERVICE}/{method.name}"] = usual if carries_message else small
    return limits


def _shorten(arrival: asyncio.Timeout) -> None:
    if arrival.expired():
        return
    soon = asyncio.get_running_loop().time() + _CONTENDED_ARRIVAL_SECONDS
    when = arrival.when()
    arrival.reschedule(soon if when is None else min(soon, when))


def _not_in_time() -> Failure:
    text = "The request did not arrive in time. Send it faster, or send fewer at once."
    return Failure("deadline_exceeded", text)


def _not_one_message() -> Failure:
    return _invalid("This method takes one message.")


def _invalid(message: str) -> Failure:
    return Failure("validation_error", message, fields={})
