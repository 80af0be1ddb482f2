"""Runs the state machines on each store."""

from contextlib import AsyncExitStack
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from evershell.core.ports import Clock, Store
from evershell.store import leases
from evershell.store.memory.memory_store import MemoryStore
from evershell.store.pool import connected, open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.publish import Publish
from evershell.store.service_clock import machine_clock
from tests.faults.invariants.deletion import DeletionMachine
from tests.faults.invariants.machine import CancellationMachine
from tests.faults.invariants.product import OpenStores
from tests.faults.invariants.trees import TreeMachine

_SETTINGS = settings(
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
    print_blob=False,
    report_multiple_bugs=False,
)


def run_in_memory(examples: int, *, is_random: bool = False, is_shrunk: bool = True) -> None:
    _run_in_memory(CancellationMachine, examples, is_random=is_random, is_shrunk=is_shrunk)


def run_deletions_in_memory(examples: int, *, is_random: bool = False) -> None:
    _run_in_memory(DeletionMachine, examples, is_random=is_random)


def _run_in_memory(
    machine: type[CancellationMachine],
    examples: int,
    *,
    is_random: bool = False,
    is_shrunk: bool = True,
) -> None:
    run_state_machine_as_test(
        _machine(_in_memory, machine),
        settings=settings(
            _SETTINGS,
            max_examples=examples,
            phases=_SETTINGS.phases if is_shrunk else [Phase.generate],
            derandomize=not is_random,
        ),
    )


def run_on_postgres(
    database_url: str,
    number: int,
    *,
    examples: int = 6,
    is_random: bool = False,
    machine: type[CancellationMachine] = CancellationMachine,
) -> None:
    few = settings(
        _SETTINGS, max_examples=examples, phases=[Phase.generate], derandomize=not is_random
    )
    run_state_machine_as_test(
        seed(number)(_machine(_on_postgres(database_url), machine)), settings=few
    )


def run_deletions_on_postgres(
    database_url: str, number: int, *, examples: int = 6, is_random: bool = False
) -> None:
    run_on_postgres(
        database_url, number, examples=examples, is_random=is_random, machine=DeletionMachine
    )


def run_trees(database_url: str | None, examples: int) -> None:
    """Runs TreeMachine on PostgreSQL, or in memory if `database_url` is None.

    TreeMachine makes one call at a time, so there are no races.
    """
    open_stores = _in_memory if database_url is None else _on_postgres(database_url)

    class Machine(TreeMachine):
        def __init__(self) -> None:
            super().__init__(open_stores)

    run_state_machine_as_test(
        Machine, settings=settings(_SETTINGS, max_examples=examples, derandomize=True)
    )


def _machine(
    open_stores: OpenStores, machine: type[CancellationMachine]
) -> type[CancellationMachine]:
    class Machine(machine):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            super().__init__(open_stores)

    return Machine


async def _in_memory(
    resources: AsyncExitStack, publish: Publish, clock: Clock
) -> tuple[Store, Store]:
    store = MemoryStore(clock, publish)
    return store, store


def _on_postgres(url: str) -> OpenStores:
    async def open_stores(
        resources: AsyncExitStack, publish: Publish, clock: Clock
    ) -> tuple[Store, Store]:
        # Writes each heartbeat at once: the clock stands still during a step, so a heartbeat that
        # waits for others would wait forever.
        resources.enter_context(patch.object(leases, "GATHER_SECONDS", 0.0))
        pool = await resources.enter_async_context(open_pool(url, min_size=1))
        observing = await resources.enter_async_context(open_pool(url, min_size=1, max_size=1))
        async with connected(pool) as connection:
            await connection.execute(
                "TRUNCATE workspaces, tasks, events, org_holds, deleted_workspaces CASCADE"
            )
        store = PostgresStore(pool, clock, publish)
        return store, PostgresStore(observing, machine_clock)

    return open_stores
