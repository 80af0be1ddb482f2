"""Runs a controller for each term in which this process leads."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any

import structlog

from evershell.fleet.controller import Controller
from evershell.store.leadership import Leadership, Term
from evershell.store.notifications import FleetSubscriptions

log = structlog.get_logger()


async def lead(
    leadership: Leadership,
    subscriptions: FleetSubscriptions,
    leading: Callable[[], AbstractContextManager[None]],
    new_controller: Callable[[Term], Controller],
) -> None:
    """Runs a new controller each time this process becomes the leader, until it is cancelled.

    The context manager from `leading` is entered while this process leads.
    """
    while True:
        async with leadership.acquired() as term, subscriptions.subscribe() as changes:
            log.info("leadership_acquired", pid=os.getpid())
            with leading():
                await _until(term.lost, new_controller(term).run(changes))


async def _until(lost: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Runs the work until the event is set. Raises the errors of the work."""
    working, losing = asyncio.create_task(work), asyncio.create_task(lost.wait())
    try:
        await asyncio.wait((working, losing), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, losing):
            task.cancel()
        await asyncio.gather(working, losing, return_exceptions=True)
