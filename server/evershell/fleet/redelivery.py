"""Redelivers recorded cancellations until the agent acknowledges or the task has ended.

An agent that can call the control plane also learns of a cancellation in the reply to its next
commit or heartbeat. Redelivery reaches the agent earlier. It also delivers a force deadline that a
later call has recorded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from evershell.backoff import backoff
from evershell.core.due import Due
from evershell.core.errors import AgentUnreachableError
from evershell.core.ports import Agents, Clock
from evershell.core.task import CancelIntent, Task

log = structlog.get_logger()

# The time from the request to the first redelivery. Until then, the call that recorded the
# cancellation may still be sending the signal itself.
FIRST_AFTER = timedelta(seconds=2)

# The task id and the force deadline. If a later call records an earlier force deadline, a new
# delivery tells the agent, even if the agent has acknowledged the cancellation.
DeliveryKey = tuple[str, datetime | None]


@dataclass(slots=True)
class _Delivery:
    failures: int
    # None once the agent has acknowledged.
    next_at: datetime | None


class Redelivery:
    """Decides which deliveries are due, and makes single attempts, for one term of leadership."""

    def __init__(
        self, agents: Agents, clock: Clock, attempted: Callable[[str], None] = lambda result: None
    ) -> None:
        """`attempted` is called after each attempt with its result.

        The result is `acknowledged`, `unknown` (the agent does not work on the task) or
        `unreachable`.
        """
        self._agents = agents
        self._clock = clock
        self._attempted = attempted
        self._deliveries: dict[DeliveryKey, _Delivery] = {}
        # The deliveries that `due` has found in the current round of pages. Cleared after the last
        # page of the round.
        self._found: set[DeliveryKey] = set()

    def due(
        self, cancellations: Sequence[Due], *, at_once: bool = False, is_last: bool = False
    ) -> Iterator[Due]:
        """The cancellations that must be delivered now.

        With `at_once`, new cancellations are due immediately, because the calls that recorded some
        of them do not signal the agents.
        After the last page of all cancellations (`is_last`), forgets deliveries that no page had.
        The caller must read the iterator to its end.
        """
        now = self._clock()
        for each in cancellations:
            if each.workspace.is_waking:
                continue
            key, cancel = delivery_key(each), _cancel_of(each.task)
            first_at = now if at_once else cancel.requested_at + FIRST_AFTER
            # Due no later than the force deadline: shortly after that deadline, the agent is
            # overdue (core/bounds.py) and its pod is ended.
            new_at = first_at if cancel.force_at is None else min(first_at, cancel.force_at)
            self._found.add(key)
            delivery = self._deliveries.get(key)
            next_at = new_at if delivery is None else delivery.next_at
            if next_at is not None and next_at <= now:
                self._deliveries.setdefault(key, _Delivery(0, now))
                yield each
        if is_last:
            for key in self._deliveries.keys() - self._found:
                del self._deliveries[key]
            self._found.clear()

    async def deliver(self, due: Due) -> None:
        """Makes one attempt to deliver the cancellation."""
        delivery = self._deliveries.get(delivery_key(due))
        if delivery is None or due.task is None:
            return
        if await self._is_delivered(due):
            delivery.next_at = None
            log.info("cancellation_delivered", workspace_id=due.workspace.id, task_id=due.task.id)
            return
        delivery.failures += 1
        pause = backoff(delivery.failures, first=0.5, longest=5.0, spread=0.0)
        delivery.next_at = self._clock() + timedelta(seconds=pause)

    async def _is_delivered(self, due: Due) -> bool:
        assert due.task is not None
        try:
            is_known = await self._agents.cancel_task(due.workspace, due.task)
        except AgentUnreachableError:
            self._attempted("unreachable")
            return False
        self._attempted("acknowledged" if is_known else "unknown")
        return is_known


def delivery_key(due: Due) -> DeliveryKey:
    """Identifies the delivery of a cancellation that is due."""
    assert due.task is not None
    return due.task.id, _cancel_of(due.task).force_at


def _cancel_of(task: Task | None) -> CancelIntent:
    assert task is not None
    assert task.cancel is not None
    return task.cancel
