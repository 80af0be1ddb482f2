"""Lets concurrent callers share a statement.

GroupCommit puts different requests into one statement, which saves round trips and commits.
SharedReads gives the result of one read to all callers that ask for the same.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

import psycopg

from evershell.core import deadline
from evershell.core.errors import UnavailableError
from evershell.store.pool import ACQUIRE_TIMEOUT_SECONDS, ANSWER_TIMEOUT_SECONDS

Request = TypeVar("Request")
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

# How long a caller waits for its result if its deadline is not earlier.
_WAIT_SECONDS = ACQUIRE_TIMEOUT_SECONDS + ANSWER_TIMEOUT_SECONDS
# How long a statement holds requests back. A statement that takes longer counts as slow, for
# example because its connection is broken.
_PATIENCE_SECONDS = 0.1
# How many slow statements may be in flight, so that they do not use all connections of the pool.
_MAX_SLOW = 3

# Errors that pool.connected turns into UnavailableError although the database works. One
# member has caused the error, and the transaction was rolled back.
_CAUSED_BY_MEMBER = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
)


class _Member(Generic[Request, Result]):
    """A request that waits for its group, and its result."""

    __slots__ = ("request", "result")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        # The future is already done if the caller was cancelled or has waited too long.
        if not self.result.done():
            self.result.set_exception(error)

    def give_up(self) -> None:
        self.fail(UnavailableError("The database did not answer in time."))


class GroupCommit(Generic[Request, Result]):
    """Commits the requests of concurrent callers in shared statements.

    `commit` runs one statement, which is one transaction, for several requests, and returns their
    results in the same order after the commit. At most `at_once` statements are in flight. If fewer
    are in flight, a request starts at once, alone and in the task of its caller. Otherwise it waits
    until a statement returns, and shares the next statement with the other waiting requests, at
    most `max_batch` in all.

    If a member makes the statement fail, each member is committed alone, so that only this member
    gets the error. A slow statement does not hold back the requests after it.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Request]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int,
        at_once: int,
    ) -> None:
        self._commit = commit
        self._max_batch = max_batch
        self._at_once = at_once
        self._waiting: deque[_Member[Request, Result]] = deque()
        # The numbers of the statements in flight that are not slow, the oldest first.
        self._in_flight: dict[int, None] = {}
        self._last_number = 0
        self._slow = 0
        self._groups: set[asyncio.Task[None]] = set()
        # Runs while a request waits.
        self._watchdog: asyncio.TimerHandle | None = None

    async def __call__(self, request: Request) -> Result:
        """Commits the request and returns its result.

        Raises the error of `commit`. Raises UnavailableError if there is no result within the
        deadline of the caller; the request may be committed or not. If the caller is cancelled, a
        request that still waits for its group is dropped, and one that is in a group is committed
        nevertheless.
        """
        if len(self._in_flight) < self._at_once:
            number = self._begin()
            try:
                (result,) = await self._commit((request,))
            finally:
                self._end(number)
            return result
        member: _Member[Request, Result] = _Member(request)
        self._waiting.append(member)
        self._arm_watchdog()
        timer = asyncio.get_running_loop().call_later(
            deadline.bounded(_WAIT_SECONDS), member.give_up
        )
        try:
            return await member.result
        finally:
            timer.cancel()

    async def drained(self) -> None:
        """Returns when no group is in flight, even one whose callers were all cancelled."""
        while self._groups:
            await asyncio.wait(self._groups)

    def _begin(self) -> int:
        self._last_number += 1
        self._in_flight[self._last_number] = None
        return self._last_number

    def _end(self, number: int) -> None:
        if number in self._in_flight:
            del self._in_flight[number]
        else:
            self._slow -= 1
        self._start_group()

    def _start_group(self) -> None:
        """Sends the requests that wait, unless `at_once` statements are in flight."""
        if not self._waiting or len(self._in_flight) >= self._at_once:
            return
        if group := self._take_group():
            # An empty context: the deadline of one caller must not apply to the others.
            task = asyncio.create_task(self._run(self._begin(), group), context=Context())
            self._groups.add(task)
            task.add_done_callback(self._groups.discard)

    def _take_group(self) -> list[_Member[Request, Result]]:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        group: list[_Member[Request, Result]] = []
        while self._waiting and len(group) < self._max_batch:
            member = self._waiting.popleft()
            if not member.result.done():
                group.append(member)
        if self._waiting:
            self._arm_watchdog()
        return group

    async def _run(self, number: int, group: list[_Member[Request, Result]]) -> None:
        try:
            await self._commit_group(group)
        finally:
            for member in group:
                # Has an effect only if this task was cancelled, at the end of the process.
                member.result.cancel()
            self._end(number)

    async def _commit_group(self, group: list[_Member[Request, Result]]) -> None:
        try:
            results = await self._commit([member.request for member in group])
        except Exception as error:  # noqa: BLE001 - raised in the callers
            if len(group) == 1 or not _is_caused_by_member(error):
                for member in group:
                    member.fail(error)
                return
            for member in group:
                # Skips a request whose caller has left: it could take effect much later.
                if not member.result.done():
                    await self._commit_group([member])
            return
        for member, result in zip(group, results, strict=True):
            if not member.result.done():
                member.result.set_result(result)

    def _arm_watchdog(self) -> None:
        if self._watchdog is None:
            self._watchdog = asyncio.get_running_loop().call_later(
                _PATIENCE_SECONDS, self._overtake
            )

    def _overtake(self) -> None:
        """Counts the oldest statement as slow, so that the requests that wait can start."""
        self._watchdog = None
        if self._slow < _MAX_SLOW:
            del self._in_flight[next(iter(self._in_flight))]
            self._slow += 1
            self._start_group()
        elif self._waiting:
            self._arm_watchdog()


def _is_caused_by_member(error: Exception) -> bool:
    """Whether the statement was rolled back because of one of its members."""
    if isinstance(error, UnavailableError):
        return isinstance(error.__cause__, _CAUSED_BY_MEMBER)
    return True


class SharedReads(Generic[Key, Result]):
    """Lets callers that want the same key share one read.

    A caller never gets the result of a read that started before its call. At most `at_once` reads
    run at a time, which leaves connections for other queries.
    """

    def __init__(self, read: Callable[[Key], Awaitable[Result]], at_once: int) -> None:
        self._read = read
        self._slots = asyncio.Semaphore(at_once)
        # Reads that have not started, which later callers join.
        self._next: dict[Key, asyncio.Task[Result]] = {}

    async def __call__(self, key: Key) -> Result:
        """The result of the read. Raises the error of the read."""
        reading = self._next.get(key)
        if reading is None:
            # An empty context: the deadline of the first caller must not apply to the others.
            reading = self._next[key] = asyncio.create_task(self._begin(key), context=Context())
            reading.add_done_callback(_observe)
        # The cancellation of one caller must not cancel the read of the others.
        return await asyncio.shield(reading)

    async def _begin(self, key: Key) -> Result:
        async with self._slots:
            del self._next[key]
            return await self._read(key)


def _observe(reading: "asyncio.Future[Result]") -> None:
    """Marks the exception as retrieved, because all callers may have been cancelled."""
    if not reading.cancelled():
        reading.exception()
