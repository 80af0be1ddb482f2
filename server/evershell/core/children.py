"""Use cases of agents: submit, read and cancel children of the task that the agent works on.

The credential is the agent's own token, which names one workspace and one epoch. It is accepted
only while the parent is the agent's current task. A child must be in a workspace of the same
organization and the same creator, so an agent that was taken over cannot reach the workspaces of
other users. The scopes of the caller who submitted the parent are not stored, so they do not limit
the agent.
"""

from dataclasses import dataclass
from typing import Protocol

from evershell.core import errors
from evershell.core.caller import Caller, CredentialKind
from evershell.core.cancel_task import CancelTask, CancelTaskStore, cancel_task
from evershell.core.errors import Failure
from evershell.core.ports import Agents, Clock, Subscriptions
from evershell.core.runtime import AgentIdentity
from evershell.core.task import Task
from evershell.core.tasks import SubmitTask, SubmitTaskStore, submit_task
from evershell.core.validation import check_identifiers
from evershell.core.workspace import Workspace

# The scopes of an agent, for every workspace that `Children._workspace` accepts.
_SCOPES = frozenset({"tasks:write", "workspace:write"})


@dataclass(frozen=True, slots=True)
class AgentCaller:
    """An agent that makes a call about children. The parent is its current task."""

    parent_task_id: str
    # The agent's workspace. The organization and the creator of a workspace never change.
    own: Workspace
    caller: Caller


class ChildrenStore(SubmitTaskStore, CancelTaskStore, Protocol):
    """What Children needs from the store."""


@dataclass(frozen=True, slots=True)
class Children:
    """The calls of agents about children.

    Every method raises UnavailableError if the database does not answer.
    """

    store: ChildrenStore
    agents: Agents
    subscriptions: Subscriptions
    clock: Clock

    async def enter(self, agent: AgentIdentity, parent_task_id: str) -> AgentCaller:
        """Checks that the parent is the agent's current task. Returns the agent as a caller.

        Raises Failure: validation_error, task_not_found, parent_not_running.
        """
        check_identifiers(parent_task_id=parent_task_id)
        own, parent = await self.store.get_workspace_with_task(agent.workspace_id, parent_task_id)
        if own is None or parent is None:
            raise errors.task_not_found(agent.workspace_id, parent_task_id)
        if own.is_fenced(agent.epoch) or own.current_task_id != parent.id:
            message = f"Task {parent.id} is not the current task of this agent. Nothing was done."
            raise Failure(
                "parent_not_running",
                message,
                workspace_id=own.id,
                task_id=parent.id,
                status=str(parent.status),
            )
        actor_id = f"agent:{own.id}"
        caller = Caller(own.org_id, actor_id, CredentialKind.AGENT, _SCOPES)
        return AgentCaller(parent.id, own, caller)

    async def submit(self, by: AgentCaller, request: SubmitTask) -> Task:
        """Submits a child of the parent. A child that is not delivered ends `delivery_failed`.

        Raises Failure permission_denied, and the Failures of submit_task for a task with a parent.
        """
        assert request.parent_task_id == by.parent_task_id
        await self._workspace(by, request.workspace_id)
        try:
            return await submit_task(
                by.caller, request, self.store, self.agents, self.subscriptions, self.clock
            )
        except Failure as failure:
            return await self._recorded(request.workspace_id, failure)

    async def read(self, by: AgentCaller, workspace_id: str, task_id: str) -> Task:
        """Reads a child of the parent.

        Raises Failure: validation_error, workspace_not_found, permission_denied, task_not_found.
        """
        check_identifiers(workspace_id=workspace_id, task_id=task_id)
        await self._workspace(by, workspace_id)
        task = await self.store.get_task(workspace_id, task_id)
        if task is None or task.parent_id != by.parent_task_id:
            raise errors.task_not_found(workspace_id, task_id)
        return task

    async def cancel(self, by: AgentCaller, request: CancelTask) -> Task:
        """Cancels a child of the parent, unless it has ended. Raises Failure like `read`."""
        assert request.task_id is not None
        child = await self.read(by, request.workspace_id, request.task_id)
        try:
            result = await cancel_task(
                by.caller, request, self.store, self.agents, self.subscriptions, self.clock
            )
        except Failure as failure:
            return await self._recorded(request.workspace_id, failure)
        return result.task or child

    async def _workspace(self, by: AgentCaller, workspace_id: str) -> None:
        """Checks that a child may be in this workspace.

        Needs no lock, because the organization and the creator of a workspace never change.
        """
        check_identifiers(workspace_id=workspace_id)
        workspace = await self.store.get_workspace(workspace_id, by.own.org_id)
        if workspace is None:
            raise errors.workspace_not_found(workspace_id)
        if workspace.created_by_user_id != by.own.created_by_user_id:
            message = (
                f"Workspace {workspace.id} and the workspace of this agent, {by.own.id}, have "
                "different creators. A child needs a workspace of the same creator."
            )
            raise errors.permission_denied(message, [])

    async def _recorded(self, workspace_id: str, failure: Failure) -> Task:
        """Returns the task, if the call failed only because the agent did not answer.

        In this case, the task or its cancellation is recorded. Raises `failure` if its slug is not
        agent_unreachable, and Failure task_not_found if the workspace has been deleted.
        """
        if failure.slug != "agent_unreachable":
            raise failure
        task_id = failure.details["task_id"]
        task = await self.store.get_task(workspace_id, task_id)
        if task is None:
            raise errors.task_not_found(workspace_id, task_id)
        return task
