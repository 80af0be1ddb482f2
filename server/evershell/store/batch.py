"""Handles the items of concurrent callers together, for example in one statement."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

import psycopg
import structlog

from evershell.core import deadline
from evershell.core.errors import UnavailableError
from evershell.store.pool import ACQUIRE_TIMEOUT_SECONDS, ANSWER_TIMEOUT_SECONDS

Item = TypeVar("Item")
Result = TypeVar("Result")

# How long a caller waits for its result, in addition to `gather_seconds`. It waits less if its
# deadline is earlier.
_WAIT_SECONDS = ACQUIRE_TIMEOUT_SECONDS + ANSWER_TIMEOUT_SECONDS
# How long callers wait for the groups in flight before the oldest of these groups counts as slow,
# for example because its connection is broken. A further group may then start.
_PATIENCE_SECONDS = 0.1
# The maximum number of slow groups in flight, so that they do not use all connections of the pool.
_MAX_SLOW = 3
# The shortest pause before items that were `put` are handled again, after the database has not
# answered.
_RETRY_SECONDS = 0.25
_CAPACITY = 10_000

# Errors that pool.connected turns into UnavailableError, but that do not mean that the database is
# unavailable: an item of the group has caused the error, and the transaction was rolled back.
_CAUSED_BY_ITEM = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
)

_log = structlog.get_logger()


class _Waiting(Generic[Item, Result]):
    """An item that waits for its group."""

    __slots__ = ("due_at", "item", "key", "result")

    def __init__(
        self, item: Item, key: Hashable, due_at: float, result: "asyncio.Future[Result] | None"
    ) -> None:
        self.item = item
        self.key = key
        # When the group of the item may start, by the clock of the event loop; 0 for at once.
        self.due_at = due_at
        # None if no caller waits. Already done if the caller was cancelled or has waited too long.
        self.result = result


class Batch(Generic[Item, Result]):
    """Handles the items of concurrent callers in groups.

    `await batch(item)` waits for the result of the item. `batch.put(item)` returns at once, and the
    item is handled in the background.

    - Groups: `handle` gets the items of a group. It returns their results, in the same order, or
      None if no caller waits for them. A `handle` that executes a statement returns after the
      commit. A group has at most `at_most` items. At most `at_once` groups are in flight,
      not counting slow ones.
    - Start: the first item of a group waits for `gather_seconds`, and then until a group may start.
      The other items that wait by then join the group. If `gather_seconds` is 0 and a group may
      start, `batch(item)` handles its item at once, alone and in the asyncio task of the caller.
    - Errors: if one item makes its group fail, each item of the group is handled alone, so that
      only this item fails. A caller gets the error of its item. After an UnavailableError, items
      that were `put` are handled again after `gather_seconds`, but not before 0.25 s have passed.
      After any other error they are dropped.
    - Slow groups: if callers wait 0.1 s longer than `gather_seconds`, the oldest group no longer
      counts as in flight, so the next one starts. There are at most three slow groups at a time.
    - Cancellation: if a caller is cancelled while its item waits, the item is dropped. If the group
      of the item is in flight by then, the item is handled nevertheless. If the caller's own
      asyncio task handles the item, the cancellation interrupts `handle`.
    - End: `drained` handles everything that waits.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result] | None]],
        *,
        at_most: int,
        at_once: int = 1,
        gather_seconds: float = 0.0,
        capacity: int = _CAPACITY,
        dropped: Callable[[Item], None] = lambda item: None,
    ) -> None:
        """`put` drops its item if `capacity` items wait.

        `dropped` is called with each item that was `put` and then dropped.
        """
        self._handle = handle
        self._at_most = at_most
        self._at_once = at_once
        self._gather_seconds = gather_seconds
        self._capacity = capacity
        self._dropped = dropped
        self._waiting: OrderedDict[Hashable, _Waiting[Item, Result]] = OrderedDict()
        # The timer that starts the next group; None if no item waits, or if the end of a group
        # starts the next one.
        self._timer: asyncio.TimerHandle | None = None
        # Before this time of the event loop no group starts, because the database did not answer.
        self._resume_at = 0.0
        # The numbers of the groups in flight that are not slow, the oldest first.
        self._in_flight: dict[int, None] = {}
        self._last_number = 0
        self._slow = 0
        self._groups: set[asyncio.Task[None]] = set()
        # The timer that finds slow groups. Runs while a caller waits.
        self._watchdog: asyncio.TimerHandle | None = None
        self._is_ending = False

    async def __call__(self, item: Item) -> Result:
        """Handles the item and returns its result.

        Raises the error of `handle`, or UnavailableError if the item waits too long for its result
        (_WAIT_SECONDS). The item may then nevertheless be handled.
        """
        if not self._gather_seconds and len(self._in_flight) < self._at_once:
            number = self._begin()
            try:
                results = await self._handle((item,))
            finally:
                self._end(number)
            assert results is not None
            return results[0]
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._wait(item, result, result)
        if self._watchdog is None:
            self._arm_watchdog()
        timer = loop.call_later(
            deadline.bounded(self._gather_seconds + _WAIT_SECONDS), _give_up, result
        )
        try:
            return await result
        finally:
            timer.cancel()

    def put(self, item: Item, key: Hashable = None) -> None:
        """Handles the item in the background. Drops it if too many items wait.

        Replaces an item with the same key that still waits. By default, the item is its own key.
        """
        key = item if key is None else key
        if (waiting := self._waiting.get(key)) is not None:
            waiting.item = item
        elif len(self._waiting) < self._capacity:
            self._wait(item, key, None)
        else:
            self._dropped(item)

    async def drained(self) -> None:
        """Handles all items that wait, and returns when the groups in the background have ended.

        That includes groups whose callers were all cancelled. Does not wait for items that are
        handled in the tasks of their callers. If the database does not answer, the items that were
        `put` are dropped.
        """
        self._is_ending = True
        self._start()
        while self._groups:
            await asyncio.wait(self._groups)

    def _wait(self, item: Item, key: Hashable, result: "asyncio.Future[Result] | None") -> None:
        due_at = 0.0
        if self._gather_seconds:
            due_at = asyncio.get_running_loop().time() + self._gather_seconds
        self._waiting[key] = _Waiting(item, key, due_at, result)
        if self._timer is None and len(self._in_flight) < self._at_once:
            # The group does not start at once, so that it gets all items of this turn of the event
            # loop. Its context is empty, so that one caller's deadline does not apply to others.
            self._timer = asyncio.get_running_loop().call_later(
                self._gather_seconds, self._start, context=Context()
            )

    def _begin(self) -> int:
        self._last_number += 1
        self._in_flight[self._last_number] = None
        return self._last_number

    def _end(self, number: int) -> None:
        if number in self._in_flight:
            del self._in_flight[number]
        else:
            self._slow -= 1
        self._start()

    def _start(self) -> None:
        """Starts all groups that may start now, and sets the timer for the next group."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._in_flight) < self._at_once:
            due_at = max(next(iter(self._waiting.values())).due_at, self._resume_at)
            if due_at and not self._is_ending:
                loop = asyncio.get_running_loop()
                if due_at > loop.time():
                    self._timer = loop.call_at(due_at, self._start, context=Context())
                    return
            if group := self._take_group():
                task = asyncio.create_task(self._run(self._begin(), group), context=Context())
                self._groups.add(task)
                task.add_done_callback(self._groups.discard)

    def _take_group(self) -> list[_Waiting[Item, Result]]:
        group: list[_Waiting[Item, Result]] = []
        while self._waiting and len(group) < self._at_most:
            _, waiting = self._waiting.popitem(last=False)
            if waiting.result is None or not waiting.result.done():
                group.append(waiting)
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
            if self._waiting:
                self._arm_watchdog()
        return group

    async def _run(self, number: int, group: list[_Waiting[Item, Result]]) -> None:
        try:
            await self._handle_group(group, is_last=self._is_ending)
        finally:
            for waiting in group:
                # Has an effect only if this asyncio task was cancelled, at the end of the process.
                if waiting.result is not None:
                    waiting.result.cancel()
            self._end(number)

    async def _handle_group(self, group: list[_Waiting[Item, Result]], *, is_last: bool) -> None:
        """Handles the group. If `is_last`, an outage drops the group and all items that wait."""
        try:
            results = await self._handle([waiting.item for waiting in group])
        except Exception as error:  # noqa: BLE001 - raised in the callers, or logged
            if len(group) == 1 or not _is_caused_by_item(error):
                for waiting in group:
                    self._fail(waiting, error, is_last=is_last)
                return
            for waiting in group:
                # Skips an item whose caller has given up, because it could take effect much later.
                if waiting.result is None or not waiting.result.done():
                    await self._handle_group([waiting], is_last=is_last)
            return
        if results is not None:
            for waiting, result in zip(group, results, strict=True):
                if waiting.result is not None and not waiting.result.done():
                    waiting.result.set_result(result)

    def _fail(self, waiting: _Waiting[Item, Result], error: Exception, *, is_last: bool) -> None:
        if waiting.result is not None:
            if not waiting.result.done():
                waiting.result.set_exception(error)
        elif not isinstance(error, UnavailableError):
            _log.error("batch_item_refused", exc_info=error)
            self._dropped(waiting.item)
        elif is_last:
            self._dropped(waiting.item)
            if not _is_caused_by_item(error):
                for each in self._waiting.values():
                    self._dropped(each.item)
                self._waiting.clear()
        else:
            pause = max(self._gather_seconds, _RETRY_SECONDS)
            self._resume_at = asyncio.get_running_loop().time() + pause
            # If another item with the same key waits by now, it is newer and replaces this one.
            self._waiting.setdefault(waiting.key, waiting)

    def _arm_watchdog(self) -> None:
        self._watchdog = asyncio.get_running_loop().call_later(
            self._gather_seconds + _PATIENCE_SECONDS, self._overtake
        )

    def _overtake(self) -> None:
        """Counts the oldest group as slow, so that the next group can start."""
        self._watchdog = None
        if len(self._in_flight) >= self._at_once and self._slow < _MAX_SLOW:
            del self._in_flight[next(iter(self._in_flight))]
            self._slow += 1
            self._start()
        if self._waiting and self._watchdog is None:
            self._arm_watchdog()


def _give_up(result: "asyncio.Future[Result]") -> None:
    if not result.done():
        result.set_exception(UnavailableError("The database did not answer in time."))


def _is_caused_by_item(error: Exception) -> bool:
    """Whether the group was rolled back because of one of its items."""
    if isinstance(error, UnavailableError):
        return isinstance(error.__cause__, _CAUSED_BY_ITEM)
    return True
