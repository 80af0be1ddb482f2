"""Runs the product in one process, put together as in production.

The rules of the state machine (machine.py) control its clock and its network, and make its database
fail.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from itertools import count
from typing import Any, TypeVar

from evershell.core import workspaces
from evershell.core.bounds import Bounds
from evershell.core.caller import Caller, CredentialKind
from evershell.core.event import Event, Origin
from evershell.core.ports import UNDELIVERED, Store
from evershell.core.runtime import Runtime
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.fleet.controller import Controller
from evershell.fleet.parts import Parts
from evershell.store.memory.subscriptions import MemorySubscriptions
from evershell.store.publish import Publish
from tests.faults.invariants.agent import Agent, Surrounded
from tests.faults.invariants.clock import Clock
from tests.faults.invariants.gates import PRICES
from tests.faults.invariants.pods import Changes, Pods
from tests.faults.invariants.record import Record
from tests.faults.invariants.spy_store import Removed, SpyStore
from tests.faults.invariants.stage import Stage
from tests.faults.invariants.wire import Wire

LEASE_SECONDS = 12.0
# These timeouts are longer than any run. The agents themselves have no timeouts, because their
# calls last until a rule of the state machine ends them.
BOUNDS = Bounds(
    model_timeout_seconds=150.0, tool_timeout_seconds=150.0, lease_seconds=LEASE_SECONDS
)
# How long the workspace must be idle before it is suspended.
SUSPEND_AFTER = timedelta(seconds=6)
# How far the clock advances in one step. It is so short that no step contains two heartbeats.
STEP_SECONDS = 0.5
_SCOPES = frozenset({"workspace:read", "workspace:write", "tasks:write", "org:hold"})
CALLER = Caller("org_a", "user_1", CredentialKind.SESSION, _SCOPES)
CALLERS = {"user": CALLER, "program": Caller("org_a", "key_1", CredentialKind.API_KEY, _SCOPES)}

Returned = TypeVar("Returned")
# Opens the store under test, and a second store for another session of the same database. Takes a
# function to call after each commit, and the clock for leases.
OpenStores = Callable[[AsyncExitStack, Publish, Clock], Coroutine[Any, Any, tuple[Store, Store]]]


class Product:
    """One workspace with its agents and one controller, in a separate event loop."""

    def __init__(self, open_stores: OpenStores) -> None:
        self.clock = Clock()
        self.record = Record()
        self.subscriptions = MemorySubscriptions()
        self.agents: list[Agent] = []
        self.workspace_id = ""
        self._run_numbers = count(1)
        self._background: set[asyncio.Task[None]] = set()
        self._leading: asyncio.Task[None] | None = None
        # When the current controller began to lead; None if none leads.
        self.leading_since: datetime | None = None
        self._resources = AsyncExitStack()
        self._stage = Stage(self.clock)
        self._stage.open(self._open(open_stores))

    def run(self, step: Coroutine[Any, Any, Returned]) -> Returned:
        """Runs a step and what it causes, until only the clock or a gate can continue the run."""
        return self._stage.run(step)

    async def settle(self) -> None:
        """Waits until no asyncio task can continue without another rule."""
        await self._stage.settle()

    async def _open(self, open_stores: OpenStores) -> None:
        store, observer = await open_stores(
            self._resources,
            self._publish,
            self.clock,
        )
        observing = SpyStore(observer, self.record, self.clock)
        self.observer: Store = observing
        self.store = SpyStore(store, self.record, self.clock)
        self._stage.stores += [self.store, observing]
        runtime = Runtime(self.store, self.clock, LEASE_SECONDS, prices=PRICES)
        self.shared = Surrounded(
            runtime=runtime, store=self.store, record=self.record, clock=self.clock
        )
        self.wire = Wire(self.agents, self.observer, self.record, self.clock)
        self.pods = Pods(self.agents, self.shared)
        self.run_id = f"run_{next(self._run_numbers)}"
        self.workspace_id = (
            await workspaces.create_workspace(CALLER, "", Origin(), self.store, self.clock)
        ).id
        self.lead()

    def _publish(self, workspace_id: str, *, watched: bool, reconcile: bool) -> None:
        self.subscriptions.publish(workspace_id)
        if workspace_id == UNDELIVERED and self._leading is not None:
            self.changes.publish(workspace_id)

    def close(self) -> None:
        """Ends every call, agent and controller, and closes the stores."""

        async def close() -> None:
            await self.stop_leading()
            await self.wire.close()
            for agent in self.agents:
                if not agent.is_gone:
                    await agent.crash()
            for call in self.record.calls:
                call.runner.cancel()
            for running in self._background:
                running.cancel()
            await self.settle()
            await self._resources.aclose()

        self._stage.close(close())

    def _start(self, call: Coroutine[Any, Any, None]) -> None:
        """Runs a call in the background."""
        running = asyncio.create_task(call)
        self._background.add(running)
        running.add_done_callback(self._background.discard)

    @property
    def task_ids(self) -> list[str]:
        """The ids of all tasks, in the order of their submission."""
        return list(self.store.tasks)

    # The state of the database.

    async def workspace(self) -> Workspace:
        if self.removed is not None:
            return self.removed.workspace
        found = await self.observer.get_workspace(self.workspace_id)
        assert found is not None
        return found

    async def tasks(self) -> Sequence[Task]:
        if self.removed is not None:
            return self.removed.tasks
        return await self.observer.list_tasks(self.workspace_id, None, 1_000)

    async def events(self) -> Sequence[Event]:
        if self.removed is not None:
            return self.removed.events
        return await self.observer.list_events(self.workspace_id, 0, 10_000)

    async def task(self, task_id: str | None) -> Task | None:
        return next((each for each in await self.tasks() if each.id == task_id), None)

    @property
    def removed(self) -> Removed | None:
        """The workspace as it was just before its removal; None if it has not been removed."""
        return self.store.removed

    # The actions of the stack.

    def lead(self) -> None:
        """Starts a leading controller unless one already leads."""
        if self._leading is None:
            self.changes = Changes()
            parts = Parts(
                store=self.store,
                pods=self.pods,
                agents=self.wire,
                clock=self.clock,
                bounds=BOUNDS,
                run_id=self.run_id,
                suspend_after=SUSPEND_AFTER,
            )
            controller = Controller(parts, self.clock())
            self._leading = asyncio.create_task(controller.run(self.changes))
            self.leading_since = self.clock()

    async def stop_leading(self) -> None:
        """Ends the leading controller. The pods keep running."""
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.wait({self._leading})
            self._leading = self.leading_since = None

    async def restart_stack(self) -> None:
        """Ends every pod that can be reached, and starts a controller with a new run id."""
        await self.stop_leading()
        await self.pods.end(await self.workspace(), grace_seconds=0)
        self.run_id = f"run_{next(self._run_numbers)}"
        self.lead()

    def drain(self) -> None:
        """Makes the server answer the calls that wait. Another server takes over."""
        self.record.drains += 1
        self.subscriptions.drain()
        self.subscriptions = MemorySubscriptions()

    async def advance(self, seconds: float) -> None:
        """Advances the clock in steps, so that timers fire in order."""
        await self.advance_to(self.clock() + timedelta(seconds=seconds))

    async def advance_to(self, moment: datetime) -> None:
        """Advances the clock in steps until it shows `moment`."""
        while (left_seconds := (moment - self.clock()).total_seconds()) > 0:
            self.clock.advance(min(left_seconds, STEP_SECONDS))
            await self.settle()
