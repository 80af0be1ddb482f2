"""Partitions: chaos on many hosts, during which the connections between hosts are cut."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psycopg

from tests.faults.long.chaos.faults import BACK_SECONDS, Hit
from tests.faults.long.chaos.load import Load
from tests.faults.long.chaos.plan import Fault, Kind, Plan, Target
from tests.faults.long.chaos.run import Outcome, environment, play_and_judge
from tests.faults.long.chaos.unhurt import Hurt
from tests.faults.long.hosts.many_hosts import (
    AGENTS,
    CONTROLLERS,
    DATABASE,
    EDGE,
    HOSTS,
    WORKERS,
    ManyHosts,
)
from tests.faults.network import both_ways, network, one_way
from tests.support.stack import Workspace

GROUPS = {
    Target.EDGE_WORKERS: ((EDGE,), WORKERS),
    Target.WORKERS_DATABASE: (WORKERS, (DATABASE,)),
    Target.CONTROLLERS_DATABASE: (CONTROLLERS, (DATABASE,)),
    Target.WORKERS_AGENTS: (WORKERS, AGENTS),
    Target.CONTROLLERS_AGENTS: (CONTROLLERS, AGENTS),
}
# Half of the cuts lose packets in both directions.
_KINDS = (Kind.CUT, Kind.CUT, Kind.CUT_THERE, Kind.CUT_BACK)
# The longest cut is longer than a lease, but shorter than a caller waits for an answer.
_CUT_SECONDS = (1.0, 9.0)
# The share of cuts during which a second cut begins.
_DOUBLE_SHARE = 0.4
# The time from the end of one cut to the next one, during which everything must recover.
_CALM_SECONDS = 6.5
_POLL_SECONDS = 0.1


def draw(seed: int, seconds: float, workspaces: int, load: int = 0) -> Plan:
    """Draws a plan from `seed`.

    Each pair of groups is cut once before any pair is cut again.
    """
    return Plan(seed, seconds, workspaces, tuple(_cuts(random.Random(seed), seconds)), load)


def run(plan: Plan, state_dir: Path) -> Outcome:
    """Starts a stack, plays the plan and stops the stack."""
    with network(HOSTS) as hosts:
        stack = ManyHosts(state_dir, hosts, **environment(state_dir))
        with stack.ended():
            stack.start()
            workspace_ids = [Workspace(stack).id for _ in range(plan.workspaces)]
            return play_and_judge(stack, Partitions(stack), plan, workspace_ids)


def _cuts(chance: random.Random, seconds: float) -> Iterator[Fault]:
    at, targets = 1.0, list[Target]()
    while True:
        targets = targets or chance.sample(list(GROUPS), len(GROUPS))
        lasts = chance.uniform(*_CUT_SECONDS)
        if at + lasts + _CALM_SECONDS > seconds:
            return
        yield _cut(chance, at, lasts, first := targets.pop())
        if chance.random() < _DOUBLE_SHARE:
            second = chance.choice([target for target in GROUPS if target is not first])
            later = chance.uniform(0, lasts)
            yield _cut(chance, at + later, lasts - later, second)
        at += lasts + _CALM_SECONDS


def _cut(chance: random.Random, at: float, lasts: float, target: Target) -> Fault:
    kind, index = chance.choice(_KINDS), chance.randrange(9)
    return Fault(round(at, 3), kind, target, round(lasts, 3), index)


def ways(fault: Fault) -> list[tuple[str, str]]:
    """Returns the pairs of sender and receiver between which the fault loses all packets."""
    groups = GROUPS[fault.target]
    some, others = _choose(groups[0], fault.index), _choose(groups[1], fault.index // 3)
    match fault.kind:
        case Kind.CUT_THERE:
            return one_way(some, others)
        case Kind.CUT_BACK:
            return one_way(others, some)
        case _:
            return both_ways(some, others)


def _choose(group: Sequence[str], index: int) -> Sequence[str]:
    """Selects one host of the group, or all of them."""
    choices = [[host] for host in group] + [list(group)]
    return choices[index % len(choices)]


class Partitions:
    """Inflicts the cuts of a plan, and keeps a record of each."""

    def __init__(self, stack: ManyHosts) -> None:
        self._stack = stack
        self.hits: list[Hit] = []

    async def run(self, faults: Sequence[Fault], load: Load) -> None:
        """Inflicts each cut at its time, and returns when the last one is over.

        After this, all hosts are connected, even if an error is raised.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for fault in faults:
                    group.create_task(self._inflict(fault))
        finally:
            self._stack.network.heal()

    def hurts(self, workspace_ids: Sequence[str]) -> Iterator[Hurt]:
        """Yields a Hurt for each period in which no worker could reach both agent and database."""
        times = sorted({at for hit in self.hits for at in (hit.began, hit.ended)})
        for began, ended in pairwise(times):
            lost = {
                way
                for hit in self.hits
                if hit.began < ended and hit.ended > began
                for way in ways(hit.fault)
            }
            for workspace_id in workspace_ids:
                host = self._stack.host_of(workspace_id)
                if not any(
                    lost.isdisjoint(both_ways([worker], [host, DATABASE])) for worker in WORKERS
                ):
                    yield Hurt(workspace_id, began, ended)

    async def _inflict(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_seconds)
        cut, network = ways(fault), self._stack.network
        began = time.time()
        await asyncio.to_thread(network.cut, *cut)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(network.heal, *cut)
        ended = time.time()
        self.hits.append(Hit(fault, False, began, ended, await self._is_led()))

    async def _is_led(self) -> bool:
        """Waits until a controller leads. Returns False if BACK_SECONDS pass first."""
        with suppress(TimeoutError):
            async with asyncio.timeout(BACK_SECONDS):
                while not await asyncio.to_thread(self._leads):
                    await asyncio.sleep(_POLL_SECONDS)
                return True
        return False

    def _leads(self) -> bool:
        with suppress(psycopg.OperationalError):
            return self._stack.leader() is not None
        return False
