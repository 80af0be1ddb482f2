"""Delivers the cancellations whose signal did not arrive, again and again, until the agent
acknowledges or the task has ended.

An agent that can call the control plane learns of a cancellation in the reply to its next commit or
heartbeat all the same. This is for the time until then, and for a force deadline that came in a
later call.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_result,
    wait_random_exponential,
)

from server.core.errors import AgentUnreachableError
from server.core.ports import Agents
from server.core.task import Task
from server.core.workspace import Workspace

log = structlog.get_logger()

# Until then the call that recorded it still tries.
FIRST_AFTER = timedelta(seconds=2)
_FIRST_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 5.0

# A cancellation as its agent is to know it: an earlier force deadline makes it another one.
Delivery = tuple[str, datetime | None]


class Redelivery:
    """The deliveries of one leader, at most one at a time for a cancellation."""

    def __init__(
        self, agents: Agents, attempted: Callable[[str], None] = lambda result: None
    ) -> None:
        """`attempted` takes the result of each attempt: acknowledged, unknown or unreachable."""
        self._agents = agents
        self._attempted = attempted
        # Those under way, and those that have been acknowledged.
        self._deliveries: dict[Delivery, asyncio.Task[bool]] = {}

    def follow(self, open_cancellations: Sequence[tuple[Workspace, Task]], now: datetime) -> None:
        """Takes up what is new among the cancellations of tasks that have not ended, and drops what
        is no longer among them.
        """
        current: set[Delivery] = set()
        for workspace, task in open_cancellations:
            assert task.cancel is not None
            force_at, due = task.cancel.force_at, task.cancel.requested_at + FIRST_AFTER
            # At the force deadline at the latest: a moment later the agent is overdue
            # (core/bounds.py).
            if now < (due if force_at is None else min(due, force_at)):
                continue
            delivery = (task.id, force_at)
            current.add(delivery)
            under_way = self._deliveries.get(delivery)
            if under_way is None or _has_failed(under_way):
                self._deliveries[delivery] = asyncio.create_task(self._deliver(workspace, task))
        for over in self._deliveries.keys() - current:
            self._deliveries.pop(over).cancel()

    def stop(self) -> None:
        """Ends what is under way: another one leads."""
        for delivery in self._deliveries.values():
            delivery.cancel()
        self._deliveries.clear()

    async def _deliver(self, workspace: Workspace, task: Task) -> bool:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(AgentUnreachableError)
            | retry_if_result(lambda known: not known),
            wait=wait_random_exponential(
                multiplier=_FIRST_BACKOFF_SECONDS, max=_MAX_BACKOFF_SECONDS
            ),
        )
        try:
            await attempts(self._attempt, workspace, task)
        except Exception:
            log.exception("a defect", workspace_id=workspace.id, task_id=task.id)
            return False
        log.info("cancellation_delivered", workspace_id=workspace.id, task_id=task.id)
        return True

    async def _attempt(self, workspace: Workspace, task: Task) -> bool:
        try:
            is_known = await self._agents.cancel_task(workspace, task)
        except AgentUnreachableError:
            self._attempted("unreachable")
            raise
        self._attempted("acknowledged" if is_known else "unknown")
        return is_known


def _has_failed(delivery: asyncio.Task[bool]) -> bool:
    """By a defect, or cancelled from within: it is taken up again at the next look."""
    return delivery.done() and (delivery.cancelled() or not delivery.result())
