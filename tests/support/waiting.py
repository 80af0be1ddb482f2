"""Waits for conditions, with a time limit."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import AsyncRetrying, Retrying, retry_if_result, stop_after_delay, wait_fixed

T = TypeVar("T")

# The default time limit: many times what an idle machine needs. Only a failing test waits that
# long.
LIMIT_SECONDS = 60.0
_POLL = wait_fixed(0.01)
_UNTIL_TRUE = retry_if_result(lambda answer: not answer)


def eventually(condition: Callable[[], T], timeout_seconds: float = LIMIT_SECONDS) -> T:
    """Calls the condition until its result is true, and returns the result.

    Raises TimeoutError if the result is not true in time.
    """
    again = Retrying(
        retry=_UNTIL_TRUE,
        stop=stop_after_delay(timeout_seconds),
        wait=_POLL,
        retry_error_callback=lambda _: _fail(condition, timeout_seconds),
    )
    return again(condition)


async def eventually_async(
    condition: Callable[[], object], timeout_seconds: float = LIMIT_SECONDS
) -> Any:
    """Waits like `eventually` without blocking the event loop.

    The condition may be asynchronous.
    """

    async def ask() -> Any:
        answer = condition()
        return await answer if inspect.isawaitable(answer) else answer

    again = AsyncRetrying(
        retry=_UNTIL_TRUE,
        stop=stop_after_delay(timeout_seconds),
        wait=_POLL,
        retry_error_callback=lambda _: _fail(condition, timeout_seconds),
    )
    return await again(ask)


async def settle() -> None:
    """Lets the event loop turn 50 times, so that asyncio tasks do all that needs no I/O."""
    for _ in range(50):
        await asyncio.sleep(0)


def _fail(condition: Callable[[], object], timeout_seconds: float) -> None:
    try:
        source = " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        source = repr(condition)
    raise TimeoutError(f"not true within {timeout_seconds:g} s: {source}")
