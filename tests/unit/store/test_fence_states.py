"""What a fence makes of a workspace in each state, and what the controller makes of it then.

The controller has the run id of the agents of before, as on Kubernetes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.change import Change, Hold, Locked
from evershell.core.errors import Failure
from evershell.core.runtime import AgentIdentity, Runtime
from evershell.core.task import Phase, Task, TaskStarted, TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.fleet.controller import Controller
from evershell.store.connections import open_pool
from evershell.store.fence import fence
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.fleet import BOUNDS, RUN_ID, FakeChanges, FakePods
from tests.support.promises import read_history, violations
from tests.support.store.examples import NOW, ORG, USER, intent, permission, task, workspace
from tests.support.waiting import eventually_async
from tests.support.world import FakeAgents

PROVISIONING, STOPPED, FAILED = (
    WorkspaceStatus.PROVISIONING,
    WorkspaceStatus.STOPPED,
    WorkspaceStatus.FAILED,
)

Step = Callable[[Locked], Change]


def placed(locked: Locked) -> Change:
    return workspace_lifecycle.place(locked, 1, RUN_ID, NOW, work_stopped=True)


def registered(locked: Locked) -> Change:
    return workspace_lifecycle.register(locked, 1, "127.0.0.1:9", 60, NOW)


def submitted(locked: Locked) -> Change:
    return task_lifecycle.submit(locked, task(locked.workspace.id), USER)


def delivered(locked: Locked) -> Change:
    assert locked.task is not None
    return task_lifecycle.deliver(locked, locked.task.id)


def started(locked: Locked) -> Change:
    assert locked.task is not None
    return task_lifecycle.commit(locked, 1, locked.task.id, [TaskStarted()], NOW)


def cancelled(locked: Locked) -> Change:
    return task_lifecycle.request_cancel(locked, intent())


def stopping(locked: Locked) -> Change:
    return workspace_lifecycle.request_stop(locked, intent())


def stopped(locked: Locked) -> Change:
    return workspace_lifecycle.finish_stop(locked, 1, NOW, work_stopped=True)


def lost(locked: Locked) -> Change:
    return workspace_lifecycle.lose_agent(locked, 1, "its agent is lost", NOW, work_stopped=True)


UP = (placed, registered)
BUSY = (*UP, submitted)
RUNNING = (*BUSY, delivered, started)


class Row(NamedTuple):
    """A state, and what becomes of it when a controller leads after the fence."""

    steps: tuple[Step, ...]
    status: WorkspaceStatus
    task_status: TaskStatus | None = None


TABLE = {
    "provisioning, not placed": Row((), PROVISIONING),
    "provisioning": Row((placed,), PROVISIONING),
    "idle": Row(UP, PROVISIONING),
    "busy, submitted": Row(BUSY, PROVISIONING, TaskStatus.FAILED),
    "busy, delivered": Row((*BUSY, delivered), PROVISIONING, TaskStatus.FAILED),
    "busy, running": Row(RUNNING, PROVISIONING, TaskStatus.FAILED),
    "busy, submitted, cancel requested": Row(
        (*BUSY, cancelled), PROVISIONING, TaskStatus.CANCELLED
    ),
    "busy, running, cancel requested": Row(
        (*RUNNING, cancelled), PROVISIONING, TaskStatus.CANCELLED
    ),
    "stopping, not placed": Row((stopping,), STOPPED),
    "stopping": Row((*UP, stopping), STOPPED),
    "stopping, running": Row((*RUNNING, stopping), STOPPED, TaskStatus.CANCELLED),
    "stopped": Row((*UP, stopping, stopped), STOPPED),
    "failed": Row((*UP, lost), FAILED),
}


class Restored:
    """The database of a test, on which no program of the service runs."""

    def __init__(self, url: str, store: PostgresStore) -> None:
        self._url = url
        self.store = store
        self.runtime = Runtime(store, lambda: NOW, 60)
        self.pods = FakePods()

    async def add(self, *steps: Step, org_id: str = ORG) -> Workspace:
        made = workspace(PROVISIONING, org_id=org_id)
        await self.store.create_workspace(made)
        for step in steps:
            await self.store.transition(made.id, step)
        return await self.get(made.id)

    async def get(self, workspace_id: str) -> Workspace:
        found = await self.store.get_workspace(workspace_id)
        assert found is not None
        return found

    async def task(self, of: Workspace) -> Task | None:
        found = await self.store.list_tasks(of.id, None, 1)
        return found[0] if found else None

    async def fence(self) -> int:
        return await asyncio.to_thread(fence, self._url)

    async def is_fenced(self, agent: AgentIdentity, task_id: str) -> bool:
        """Whether every call of the agent is refused."""
        directives = [
            await self.runtime.heartbeat(agent, task_id, Phase.NONE),
            await self.runtime.register(agent, "127.0.0.1:8"),
            await self.runtime.commit_events(agent, task_id, [TaskStarted()]),
        ]
        return all(each.fenced for each in directives)

    async def settled(self, expected: Workspace, status: WorkspaceStatus) -> Workspace:
        """Runs a controller until the workspace has the status, and every pod is started."""
        witness = await self.add(org_id="org_witness")
        controller = Controller(
            self.store, self.pods, FakeAgents(), BOUNDS, RUN_ID, lambda: NOW, NOW
        )
        leading = asyncio.create_task(controller.run(FakeChanges()))

        async def is_settled() -> bool:
            found = [await self.get(each.id) for each in (witness, expected)]
            wanted = {(each.id, each.epoch, RUN_ID) for each in found if each.awaits_controller}
            return found[1].status is status and wanted <= self.pods.started

        try:
            await eventually_async(is_settled)
        finally:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
        self.pods.started = {each for each in self.pods.started if each[0] != witness.id}
        return await self.get(expected.id)

    def violations(self) -> list[str]:
        with psycopg.connect(self._url, autocommit=True) as connection:
            cancelled = connection.execute(
                "SELECT id, 'recorded' FROM tasks WHERE cancel_requested_at IS NOT NULL"
            ).fetchall()
            return violations(read_history(connection, promised=cancelled))


@asynccontextmanager
async def _restored(url: str) -> AsyncIterator[Restored]:
    # A fence does not count the sessions of this name.
    async with open_pool(make_conninfo(url, application_name="test")) as pool:
        yield Restored(url, PostgresStore(pool, machine_clock))


@pytest.fixture
async def restored(database_url: str) -> AsyncIterator[Restored]:
    async with _restored(database_url) as opened:
        yield opened


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
async def test_a_state_before_and_after(restored: Restored, row: Row) -> None:
    before = await restored.add(*row.steps)
    task_before = await restored.task(before)
    agent, task_id = AgentIdentity(before.id, 1), task_before.id if task_before else "task_1"

    last = before
    # The second one moves the epoch once more, and changes nothing else.
    for _ in range(2):
        assert await restored.fence() == 1
        fenced = await restored.get(before.id)
        assert fenced.epoch > last.epoch
        assert fenced == replace(
            before, epoch=fenced.epoch, run_id="fenced" if before.run_id else None
        )
        assert await restored.task(before) == task_before
        assert await restored.is_fenced(agent, task_id)
        last = fenced

    after = await restored.settled(before, row.status)
    started = {(after.id, after.epoch, RUN_ID)} if after.status is PROVISIONING else set()
    assert restored.pods.started == started
    # An agent of before and one of after never share an epoch.
    assert after.epoch == fenced.epoch + (before.run_id is not None and bool(started))
    ended = await restored.task(before)
    assert (ended.status if ended else None) == row.task_status
    assert await restored.is_fenced(agent, task_id)
    assert restored.violations() == []


async def test_a_cancellation_between_fence_and_controller(restored: Restored) -> None:
    busy = await restored.add(*RUNNING)
    await restored.fence()
    found = await restored.store.record_cancellation(permission(), busy.id, None, intent())
    assert found.recorded
    await restored.settled(busy, PROVISIONING)
    ended = await restored.task(busy)
    assert ended is not None and ended.status is TaskStatus.CANCELLED
    assert restored.violations() == []


async def test_an_organization_stays_on_hold(restored: Restored) -> None:
    """As after a restart, its workspaces get new agents, but no new task."""
    busy = await restored.add(*RUNNING)
    hold = Hold(org_id=ORG, held_by=USER, held_since=NOW, reason="stop")
    await restored.store.hold_org(hold)
    await restored.fence()
    after = await restored.settled(busy, PROVISIONING)
    assert await restored.store.get_hold(ORG) == hold
    await restored.runtime.register(AgentIdentity(after.id, after.epoch), "127.0.0.1:9")

    def submit(locked: Locked) -> Change:
        locked.require_no_hold()
        return submitted(locked)

    with pytest.raises(Failure) as refused:
        await restored.store.transition(busy.id, submit, ORG)
    assert refused.value.slug == "org_on_hold"
    assert restored.violations() == []
