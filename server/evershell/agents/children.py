"""Tasks that the agent or one of its tools submits to the agents of other workspaces.

They are children of the agent's current task. The agent's own token authorizes the calls, so tools
do not need keys. docs/trees.md describes the rules for children.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from evershell.agent.v1.runtime_service_pb2 import (
    CancelChildRequest,
    GetChildRequest,
    SubmitChildRequest,
)
from evershell.workspace.v1 import task_pb2

from evershell.backoff import backoff
from evershell.core.task import TaskStatus

_NANOS = 1_000_000_000

ChildRequest = SubmitChildRequest | GetChildRequest | CancelChildRequest
# Repeats a call of RuntimeService until it is answered. Raises ChildRefusedError.
Call = Callable[[ChildRequest], Awaitable[task_pb2.Task]]


class ChildRefusedError(Exception):
    """The control plane refused a call about a child. The call had no effect."""

    def __init__(self, code: str, message: str) -> None:
        """`code` is a slug from docs/errors.md, for example `workspace_busy`."""
        super().__init__(message)
        self.code = code


class _Calls:
    """The calls about the children of one task.

    The calls are made one after the other: the control plane serves only one of them at a time.
    """

    def __init__(self, task_id: str, call: Call) -> None:
        self.task_id = task_id
        self._call = call
        self._turn = asyncio.Lock()

    async def make(self, request: ChildRequest) -> "Child":
        async with self._turn:
            task = await self._call(request)
        status = TaskStatus(task_pb2.Task.Status.Name(task.status))
        return Child(task.workspace_id, task.id, status, task.result, task.reason, self)


# The agent's current task. The agent's asyncio tasks and `in_thread` inherit it.
_current: ContextVar[_Calls] = ContextVar("children")


def begin(task_id: str, call: Call) -> None:
    """Makes the task the parent of all tasks that are submitted in this context."""
    _current.set(_Calls(task_id, call))


@dataclass(frozen=True, slots=True)
class Child:
    """A child of the agent's current task, as it was when it was read."""

    workspace_id: str
    id: str
    status: TaskStatus
    # The result, and the reason why the child ended. Both are empty until it has ended.
    result: str
    reason: str
    _calls: _Calls = field(repr=False, compare=False)

    async def read(self) -> "Child":
        """The child as it is now. Raises ChildRefusedError."""
        return await self._calls.make(GetChildRequest(**self._names()))

    async def wait(self) -> "Child":
        """Waits until the child has ended, and returns it. Raises ChildRefusedError."""
        child, looks = self, 0
        while not child.status.is_terminal:
            looks += 1
            await asyncio.sleep(backoff(looks, first=0.1, longest=1.0, spread=0.0))
            child = await child.read()
        return child

    async def cancel(self, reason: str = "", force_after_seconds: float | None = None) -> "Child":
        """Cancels the child unless it has ended. Does not cancel the child's own children.

        If `force_after_seconds` is given, the child's iteration is interrupted if it still runs
        after this time. Raises ChildRefusedError.
        """
        request = CancelChildRequest(
            **self._names(), reason=reason, force_after=_duration(force_after_seconds)
        )
        return await self._calls.make(request)

    def _names(self) -> dict[str, str]:
        return {
            "parent_task_id": self._calls.task_id,
            "workspace_id": self.workspace_id,
            "task_id": self.id,
        }


async def submit_task(
    workspace_id: str,
    description: str,
    *,
    metadata: Mapping[str, str] | None = None,
    max_iterations: int = 0,
    max_duration_seconds: float | None = None,
    max_total_tokens: int | None = None,
) -> Child:
    """Submits a child of the agent's current task to the agent of another workspace.

    The workspace must have the same organization and the same creator as this one. The child is
    submitted once, even if the call is repeated internally because a worker did not answer. If
    `max_iterations` is 0, the default of SubmitTask applies. Status `delivery_failed` means that
    the agent of the workspace could not be reached.

    Raises ChildRefusedError, for example `parent_not_running` after the task was cancelled, and
    RuntimeError outside of a task.
    """
    calls = _current.get(None)
    if calls is None:
        raise RuntimeError("only an agent can call submit_task, while it works on the task")
    request = SubmitChildRequest(
        parent_task_id=calls.task_id,
        idempotency_key=uuid.uuid4().hex,
        workspace_id=workspace_id,
        description=description,
        metadata=metadata,
        max_iterations=max_iterations,
        limits=task_pb2.TaskLimits(
            max_duration=_duration(max_duration_seconds), max_total_tokens=max_total_tokens
        ),
    )
    return await calls.make(request)


def _duration(seconds: float | None) -> Any:
    """The fields of a Duration as a message constructor takes them; None if `seconds` is None."""
    if seconds is None:
        return None
    whole, nanos = divmod(round(seconds * _NANOS), _NANOS)
    return {"seconds": whole, "nanos": nanos}
