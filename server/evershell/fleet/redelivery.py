"""Redelivers recorded cancellations until the agent acknowledges or the task has ended.

An agent that can call the control plane also learns of a cancellation in the reply to its next
commit or heartbeat. Redelivery reaches it earlier, and delivers a force deadline that a later call
has recorded.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from evershell.backoff import backoff
from evershell.core.errors import AgentUnreachableError
from evershell.core.ports import Agents
from evershell.core.task import Task
from evershell.core.workspace import Workspace

log = structlog.get_logger()

# Until this time after the request, the call that recorded the cancellation may still retry the
# signal itself.
FIRST_AFTER = timedelta(seconds=2)
# How many agents are signalled at once. An agent that does not answer takes 1.5 s.
_AT_ONCE = 200

# The task id and the force deadline. An earlier force deadline must be delivered too.
DeliveryKey = tuple[str, datetime | None]


class Redelivery:
    """The deliveries of one leader. At most one runs for each DeliveryKey."""

    def __init__(
        self, agents: Agents, attempted: Callable[[str], None] = lambda result: None
    ) -> None:
        """`attempted` is called after each attempt with its result.

        The result is `acknowledged`, `unknown` (to the agent) or `unreachable`.
        """
        self._agents = agents
        self._attempted = attempted
        # The deliveries that run or were acknowledged.
        self._deliveries: dict[DeliveryKey, asyncio.Task[bool]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def follow(
        self,
        open_cancellations: Sequence[tuple[Workspace, Task]],
        now: datetime,
        *,
        at_once: bool = False,
    ) -> None:
        """Starts the deliveries that are due, and cancels those that are no longer needed.

        `open_cancellations` are all recorded cancellations of tasks that have not ended. With
        `at_once`, all of them are due, because nobody has signalled some of them.
        """
        current: set[DeliveryKey] = set()
        for workspace, task in open_cancellations:
            assert task.cancel is not None
            force_at, due = task.cancel.force_at, task.cancel.requested_at + FIRST_AFTER
            # Due no later than the force deadline: shortly after it, the agent is overdue
            # (core/bounds.py) and its pod is ended.
            key = (task.id, force_at)
            is_due = at_once or now >= (due if force_at is None else min(due, force_at))
            if not is_due and key not in self._deliveries:
                continue
            current.add(key)
            delivery = self._deliveries.get(key)
            if delivery is None or _has_failed(delivery):
                self._deliveries[key] = asyncio.create_task(self._deliver(workspace, task))
        for key in self._deliveries.keys() - current:
            self._deliveries.pop(key).cancel()

    def stop(self) -> None:
        """Cancels all deliveries, because this process no longer leads."""
        for delivery in self._deliveries.values():
            delivery.cancel()
        self._deliveries.clear()

    async def _deliver(self, workspace: Workspace, task: Task) -> bool:
        failures = 0
        try:
            while not await self._is_delivered(workspace, task):
                failures += 1
                await asyncio.sleep(backoff(failures, first=0.5, longest=5.0))
        except Exception:
            log.exception("unexpected_error", workspace_id=workspace.id, task_id=task.id)
            return False
        log.info("cancellation_delivered", workspace_id=workspace.id, task_id=task.id)
        return True

    async def _is_delivered(self, workspace: Workspace, task: Task) -> bool:
        try:
            async with self._slots:
                is_known = await self._agents.cancel_task(workspace, task)
        except AgentUnreachableError:
            self._attempted("unreachable")
            return False
        self._attempted("acknowledged" if is_known else "unknown")
        return is_known


def _has_failed(delivery: asyncio.Task[bool]) -> bool:
    """Whether the delivery ended without an acknowledgement. It is then started again."""
    return delivery.done() and (delivery.cancelled() or not delivery.result())
