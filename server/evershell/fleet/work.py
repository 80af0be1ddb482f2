"""How each kind of work is done, and how much of each kind runs at once."""

from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass

from evershell.core.due import Due, Kind
from evershell.fleet.due import PAGE_SIZE
from evershell.fleet.limits import Limits
from evershell.fleet.redelivery import Redelivery, delivery_key
from evershell.fleet.steps import Steps

# How many pieces of work of one kind run at once, for these kinds: applying limits, ending
# unstarted tasks, and removing workspaces.
FEW = 4
# How many agents are signalled at once. The number is high, because a signal to an agent that does
# not answer takes 1.5 s.
SIGNALS = 200
# How many steps of a kind run at once. The number is high, because steps spend most of their time
# waiting for pods: the end of a pod on a lost node takes 21 s, and many nodes may be lost at once.
STEPS = 4 * PAGE_SIZE


def _of_workspace(due: Due) -> Hashable:
    return due.workspace.id


def _of_place(due: Due) -> Hashable:
    return due.kind, due.place[1]


@dataclass(frozen=True, slots=True)
class Work:
    """How a kind of work is done."""

    # May raise UnavailableError and NotLeadingError.
    do: Callable[[Due], Awaitable[None]]
    # How many pieces of this work run at once. The others wait.
    share: int
    # At most one piece of work with the same key runs or waits.
    key: Callable[[Due], Hashable] = _of_place

    @property
    def room(self) -> int:
        """While this many pieces run or wait for their share, a scan reads no more of this kind."""
        return max(self.share, PAGE_SIZE)

    @property
    def is_step(self) -> bool:
        """Whether the work may start or end pods. A workspace has one such step at a time."""
        return self.key is _of_workspace


def table(steps: Steps, limits: Limits, redelivery: Redelivery) -> Mapping[Kind, Work]:
    """The work of one term of leadership."""

    def step(do: Callable[[Due], Awaitable[None]], share: int = STEPS) -> Work:
        return Work(do, share, _of_workspace)

    return {
        Kind.OVERDUE: step(steps.reconcile),
        Kind.LEASE: step(steps.reconcile),
        Kind.TASK_LIMIT: Work(limits.apply, FEW),
        Kind.TREE_LIMIT: Work(limits.cancel_tree, FEW),
        Kind.UNSTARTED: Work(limits.end_unstarted, FEW),
        Kind.CANCELLATION: Work(redelivery.deliver, SIGNALS, delivery_key),
        Kind.START: step(steps.reconcile),
        Kind.STOP: step(steps.reconcile),
        Kind.SUSPENSION: step(steps.reconcile),
        Kind.REMOVAL: step(steps.remove, FEW),
        Kind.CHECK: step(steps.reconcile),
    }
