"""What tests of the core share: a store in memory, fake agents, and a fake clock."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from evershell.core import task_lifecycle
from evershell.core.caller import Caller, CredentialKind
from evershell.core.cancel_task import CancelResult, CancelTask, cancel_task
from evershell.core.change import Change, Locked
from evershell.core.errors import AgentUnreachableError
from evershell.core.event import Event, Origin
from evershell.core.ids import new_task_id, new_workspace_id
from evershell.core.task import (
    AgentEvent,
    CancelIntent,
    CurrentIteration,
    IterationCompleted,
    Task,
    TaskEnded,
    TaskStarted,
    TaskStatus,
)
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.store.memory.subscriptions import MemorySubscriptions
from tests.support.faulty_store import FaultyStore

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ORG = "org_a"
USER = "user_1"
ALL_SCOPES = ("workspace:read", "workspace:write", "tasks:write", "org:hold")


class FakeClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


async def _nothing(workspace: Workspace, task: Task) -> None:
    """The default of FakeAgents.meanwhile."""


@dataclass
class FakeAgents:
    """Implements core.ports.Agents: records its calls, and answers as the test has set.

    If `reachable` is false, every call fails. `known` is the answer to a cancellation: whether the
    agent has the task. `iteration` is the agent's answer about its current iteration.
    """

    reachable: bool = True
    known: bool = True
    iteration: CurrentIteration | None = None
    # Each call awaits this function before it returns or fails.
    meanwhile: Callable[[Workspace, Task], Coroutine[Any, Any, None]] = _nothing
    started: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        self.started.append(task.id)
        await self._answer(workspace, task)

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        self.cancelled.append(task.id)
        await self._answer(workspace, task)
        return self.known

    async def current_iteration(self, workspace: Workspace, task: Task) -> CurrentIteration | None:
        await self._answer(workspace, task)
        return self.iteration

    async def _answer(self, workspace: Workspace, task: Task) -> None:
        await self.meanwhile(workspace, task)
        if not self.reachable or workspace.agent_address is None:
            raise AgentUnreachableError("the fake agent is silent")


def caller(
    *scopes: str,
    org_id: str = ORG,
    actor_id: str = USER,
    kind: CredentialKind = CredentialKind.SESSION,
    every: bool = True,
) -> Caller:
    """Returns a caller with these scopes.

    If no scopes are given, the caller has all of them, or none if `every` is false.
    """
    held = scopes or (ALL_SCOPES if every else ())
    return Caller(org_id, actor_id, kind, frozenset(held))


def workspace(status: WorkspaceStatus = WorkspaceStatus.IDLE, **fields: Any) -> Workspace:
    facts = {
        "org_id": ORG,
        "name": "",
        "created_by_user_id": USER,
        "created_at": NOW,
        "updated_at": NOW,
        **fields,
    }
    return Workspace(id=new_workspace_id(), status=status, **facts)


def task(workspace_id: str, **fields: Any) -> Task:
    return Task(
        id=new_task_id(),
        workspace_id=workspace_id,
        **{"description": "true", "max_iterations": 1_000, "created_at": NOW, **fields},
    )


def intent(**fields: Any) -> CancelIntent:
    facts = {
        "requested_by": "user_9",
        "credential_kind": "session",
        "reason": "enough",
        "request_id": "req_9",
        **fields,
    }
    return CancelIntent(**{"requested_at": NOW + timedelta(seconds=1), **facts})


def locked_busy(
    status: TaskStatus = TaskStatus.RUNNING, *, cancel: CancelIntent | None = None, **fields: Any
) -> Locked:
    """Returns a busy workspace with its agent and its open task."""
    facts = {"agent_address": "127.0.0.1:9", "run_id": "run_1", "lease_expires_at": NOW, **fields}
    idle = workspace(WorkspaceStatus.BUSY, **facts)
    open_task = task(idle.id, status=status, cancel=cancel)
    return Locked(replace(idle, current_task_id=open_task.id), open_task)


def iteration(number: int, output: str = "hello", **model_call: Any) -> IterationCompleted:
    """Returns a completed iteration with one model call and one tool call."""
    call = {"content": "", "input_tokens": 2, "output_tokens": 3, **model_call}
    tool = {"name": "shell", "result": {"status": "exited", "output": output}}
    return IterationCompleted(number, {"number": number, "model_call": call, "tool_call": tool})


@dataclass
class World:
    """What a use case needs, and shortcuts to set up workspaces and tasks."""

    subscriptions: MemorySubscriptions = field(default_factory=MemorySubscriptions)
    store: FaultyStore = field(default_factory=FaultyStore)
    agents: FakeAgents = field(default_factory=FakeAgents)
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.store.publish = self.subscriptions.publish
        self.store.clock = self.clock

    async def add(self, status: WorkspaceStatus = WorkspaceStatus.IDLE, **fields: Any) -> Workspace:
        is_up = status in (WorkspaceStatus.IDLE, WorkspaceStatus.BUSY)
        address = "127.0.0.1:9" if is_up else None
        added = workspace(status, **{"agent_address": address, **fields})
        await self.store.create_workspace(added)
        return added

    async def add_busy(self, **fields: Any) -> tuple[Workspace, Task]:
        """Adds a workspace with a running task. Returns both."""
        idle = await self.add(**fields)
        running = await self.run(idle)
        return await self.workspace(idle.id), running

    async def run(self, at: Workspace, **fields: Any) -> Task:
        """Submits a task and starts it. Returns the task."""
        submitted = task(at.id, **fields)
        await self.change(at.id, lambda locked: task_lifecycle.submit(locked, submitted, USER))
        await self.commit(at.id, submitted.id, TaskStarted())
        return await self.task(at.id, submitted.id)

    async def change(self, workspace_id: str, decide: Callable[[Locked], Change]) -> Change:
        change = await self.store.transition(workspace_id, decide)
        assert change is not None
        return change

    async def commit(self, workspace_id: str, task_id: str, *events: AgentEvent) -> None:
        """Commits events as the workspace's current agent."""
        await self.change(
            workspace_id,
            lambda locked: task_lifecycle.commit(
                locked, locked.workspace.epoch, task_id, events, self.clock()
            ),
        )

    async def end(
        self,
        workspace_id: str,
        task_id: str,
        status: TaskStatus = TaskStatus.COMPLETED,
        result: str = "done",
    ) -> None:
        await self.commit(workspace_id, task_id, TaskEnded(status=status, result=result))

    async def set_status(self, workspace_id: str, status: WorkspaceStatus) -> None:
        """Sets the status of a workspace, without the checks of the lifecycle."""
        await self.change(
            workspace_id,
            lambda locked: Change(replace(locked.workspace, status=status), locked.task),
        )

    async def cancel(
        self, workspace_id: str, by: Caller | None = None, **fields: Any
    ) -> CancelResult:
        request = CancelTask(workspace_id=workspace_id, origin=Origin("req_c"), **fields)
        return await cancel_task(
            by or caller(), request, self.store, self.agents, self.subscriptions, self.clock
        )

    async def workspace(self, workspace_id: str) -> Workspace:
        found = await self.store.get_workspace(workspace_id)
        assert found is not None
        return found

    async def task(self, workspace_id: str, task_id: str) -> Task:
        found = await self.store.get_task(workspace_id, task_id)
        assert found is not None
        return found

    async def events(self, workspace_id: str) -> Sequence[Event]:
        return await self.store.list_events(workspace_id, 0, 10_000)

    async def event_types(self, workspace_id: str) -> list[str]:
        return [str(event.type) for event in await self.events(workspace_id)]
