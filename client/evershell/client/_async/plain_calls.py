"""The calls that only ask and answer."""

# Written by `make gen` from protos/. Do not edit.

from collections.abc import Iterable, Mapping
from datetime import datetime

from evershell.client._async.caller import AsyncCaller, AsyncPages
from evershell.client._calls import (
    call,
    idempotent,
    nested,
    only,
    optional,
    optional_ids,
    page,
    timestamp,
    with_id,
)
from evershell.client.types import (
    AuditEntry,
    CallerInfo,
    CurrentIteration,
    Hold,
    HoldResult,
    SubmittedTask,
    Task,
    TaskLimits,
    Workspace,
)


class AsyncPlainCalls(AsyncCaller):
    """The calls of the client that only ask and answer."""

    async def submit_task(
        self,
        workspace_id: str,
        description: str,
        *,
        metadata: Mapping[str, str] | None = None,
        max_iterations: int | None = None,
        limits: TaskLimits | None = None,
        parent_task_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> SubmittedTask:
        """Submits a task to the agent of a workspace.

        Effect: the service records the task and delivers it to the agent. Follow the task with
        `watch` or `get_task`. A suspended workspace gets a new agent: the call waits for the agent,
        but not longer than its own deadline, and then answers with the current state of the task.

        Errors: workspace_busy if a task of the workspace has not ended. If the call fails with
        agent_unreachable, the task has ended `delivery_failed`. org_on_hold while the organization
        is on hold. idempotency_conflict if another request has already used the key.

        Tree: with `parent_task_id`, the task is a child of that task. The call fails with
        task_not_found if the organization has no such task, with parent_not_running if the parent
        has ended or is being cancelled, and with tree_limit_reached if the tree would have more
        than 16 levels, or its root more than 1,000 descendants that have not ended.

        Needs tasks:write, or tasks:write:own if the caller created the workspace. A child also
        needs workspace:write, or workspace:write:own if the caller created the parent's workspace.

        Args:
            workspace_id: The id of the workspace.
            description: What the agent is to do. The model `scripted` runs each line as a shell
                command. 1 to 100,000 characters.
            metadata: Names and values for the caller's own use. At most 32 entries, keys of 1 to 64
                characters, values of at most 512.
            max_iterations: The maximum number of iterations. A task that has not finished by then
                ends `failed`. 1 to 1,000, by default 100.
            limits: The limits at which the service itself cancels the task.
            parent_task_id: Makes the task a child of this task. The parent must be in another
                workspace of the organization. It must neither have ended nor have been cancelled.
            idempotency_key: 1 to 255 printable ASCII characters. For 24 hours, a call of the same
                user or API key with this key and the same request has no effect and gets the first
                answer. None for a new key: then only the repeats of this call share it.

        Returns:
            SubmittedTask: The answer to `submit_task`.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            TaskNotFoundError: The workspace has no such task, or the organization has no such
                parent task.
            WorkspaceStoppedError: The workspace is stopped or stopping.
            WorkspaceFailedError: The workspace's agent died or could not start.
            WorkspaceDeletingError: The workspace is being deleted.
            WorkspaceProvisioningError: The workspace's agent has not registered yet.
            WorkspaceBusyError: The workspace already has a task.
            AgentUnreachableError: The workspace's agent did not answer in time; a recorded
                cancellation is delivered later.
            IdempotencyConflictError: The caller has already used the idempotency key for another
                request within the last 24 hours.
            OrgOnHoldError: The organization is on hold, so it gets no new task and no new agent.
            ParentNotRunningError: The parent of a submitted task has ended, or is being cancelled.
            TreeLimitReachedError: The tree already has the maximum number of levels, or of tasks
                that have not ended.
            CallError: Any other failure.
        """
        return await self._call(
            call(
                "SubmitTask",
                with_id(SubmittedTask),
                idempotent(idempotency_key),
                workspace_id=workspace_id,
                description=description,
                metadata=metadata,
                max_iterations=max_iterations or 0,
                limits=nested("limits", limits),
                parent_task_id=optional("parent_task_id", parent_task_id),
            )
        )

    async def get_task(self, workspace_id: str, task_id: str) -> Task:
        """Reads one task.

        Errors: task_not_found if the task does not exist or belongs to another workspace.

        Needs workspace:read, or workspace:read:own if the caller created the workspace.

        Args:
            workspace_id: The id of the workspace.
            task_id: The id of the task.

        Returns:
            Task: A piece of work for the agent of a workspace.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            TaskNotFoundError: The workspace has no such task, or the organization has no such
                parent task.
            CallError: Any other failure.
        """
        return await self._call(
            call("GetTask", only(Task), workspace_id=workspace_id, task_id=task_id)
        )

    async def get_current_iteration(self, workspace_id: str, task_id: str) -> CurrentIteration:
        """Reads what a task is doing now: the running calls of its current iteration, how long each
        has run, and the last part of its output so far.

        Effect: none. The service asks the agent, and stores nothing.

        Errors: task_not_found if the task does not exist or belongs to another workspace.
        agent_unreachable if the agent does not answer within 2 s.

        Needs workspace:read, or workspace:read:own if the caller created the workspace.

        Args:
            workspace_id: The id of the workspace.
            task_id: The id of the task.

        Returns:
            CurrentIteration: What a task is doing now.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            TaskNotFoundError: The workspace has no such task, or the organization has no such
                parent task.
            AgentUnreachableError: The workspace's agent did not answer in time; a recorded
                cancellation is delivered later.
            CallError: Any other failure.
        """
        return await self._call(
            call(
                "GetCurrentIteration",
                only(CurrentIteration),
                workspace_id=workspace_id,
                task_id=task_id,
            )
        )

    def list_tasks(
        self,
        workspace_id: str | None = None,
        *,
        parent_task_id: str | None = None,
        root_task_id: str | None = None,
        active: bool = False,
        workspace_ids: Iterable[str] | None = None,
        page_size: int | None = None,
        page_token: str | None = None,
    ) -> AsyncPages[Task]:
        """Lists tasks, newest first: the tasks of a workspace or a tree, the children of a task, or
        the organization's tasks that have not ended.

        Effect: none. If the caller has only workspace:read:own, a list across several workspaces
        has only the tasks in workspaces that the caller created.

        Errors: workspace_not_found if the workspace does not exist or belongs to another
        organization.

        Needs workspace:read, or workspace:read:own if the caller created the workspace.

        Args:
            workspace_id: Only tasks of this workspace. May be None if `root_task_id`,
                `parent_task_id` or `active` is set.
            parent_task_id: Only the children of this task.
            root_task_id: Only the tasks of the tree that has this task as its root: the root and
                all its descendants.
            active: Only tasks that have not ended.
            workspace_ids: Only tasks of these workspaces. Needs `active`, `root_task_id` or
                `parent_task_id`. Workspaces that do not exist, or that the caller may not read,
                match nothing. At most 200.
            page_size: The number of items in one answer, 1 to 200. None for the default, 50.
            page_token: The `next_page_token` of the previous page. None begins with the first page.

        Returns:
            The items, which are fetched page by page during the iteration.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace. Raised by the
                iteration.
            CallError: Any other failure. Raised by the iteration.
        """
        return self._pages(
            "ListTasks",
            page("tasks", Task),
            page_size,
            page_token,
            workspace_id=optional("workspace_id", workspace_id),
            parent_task_id=optional("parent_task_id", parent_task_id),
            root_task_id=optional("root_task_id", root_task_id),
            active=active,
            workspace_ids=optional_ids("workspace_ids", workspace_ids),
        )

    async def create_workspace(
        self,
        name: str = "",
        *,
        description: str = "",
        skills: Mapping[str, str] | None = None,
        public_card: bool = False,
        idempotency_key: str | None = None,
    ) -> Workspace:
        """Creates a workspace and starts its agent.

        Effect: the workspace is `provisioning`, and becomes `idle` when its agent has registered.

        Errors: org_on_hold while the organization is on hold. idempotency_conflict if another
        request has already used the key. workspace_not_found if the call is a repeat and the
        workspace has been deleted since the first call.

        Needs workspace:write or workspace:write:own.

        Args:
            name: Human-readable. At most 200 characters.
            description: What the workspace's agent does, for its A2A agent card. At most 2,000
                characters.
            skills: The skills on the agent card: the name and the description of each. At most 32
                entries, keys of 1 to 64 characters, values of at most 512.
            public_card: Whether anyone may read the agent card, without a credential.
            idempotency_key: 1 to 255 printable ASCII characters. For 24 hours, a call of the same
                user or API key with this key and the same request has no effect and gets the first
                answer. None for a new key: then only the repeats of this call share it.

        Returns:
            Workspace: A place where an agent works, on one task at a time.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            IdempotencyConflictError: The caller has already used the idempotency key for another
                request within the last 24 hours.
            OrgOnHoldError: The organization is on hold, so it gets no new task and no new agent.
            CallError: Any other failure.
        """
        return await self._call(
            call(
                "CreateWorkspace",
                only(Workspace),
                idempotent(idempotency_key),
                name=name,
                description=description,
                skills=skills,
                public_card=public_card,
            )
        )

    async def get_workspace(self, workspace_id: str) -> Workspace:
        """Reads one workspace.

        Errors: workspace_not_found if the workspace does not exist or belongs to another
        organization.

        Needs workspace:read, or workspace:read:own if the caller created the workspace.

        Args:
            workspace_id: The id of the workspace.

        Returns:
            Workspace: A place where an agent works, on one task at a time.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            CallError: Any other failure.
        """
        return await self._call(call("GetWorkspace", only(Workspace), workspace_id=workspace_id))

    def list_workspaces(
        self,
        *,
        workspace_ids: Iterable[str] | None = None,
        page_size: int | None = None,
        page_token: str | None = None,
    ) -> AsyncPages[Workspace]:
        """Lists the workspaces of the caller's organization, newest first.

        Effect: none. If the caller has only workspace:read:own, the list has only the workspaces
        that the caller created.

        Needs workspace:read or workspace:read:own.

        Args:
            workspace_ids: Only these workspaces. Those that do not exist, or that the caller may
                not read, are left out. At most 200.
            page_size: The number of items in one answer, 1 to 200. None for the default, 50.
            page_token: The `next_page_token` of the previous page. None begins with the first page.

        Returns:
            The items, which are fetched page by page during the iteration.

        Raises:
            CallError: The call has failed. Raised by the iteration.
        """
        return self._pages(
            "ListWorkspaces",
            page("workspaces", Workspace),
            page_size,
            page_token,
            workspace_ids=optional_ids("workspace_ids", workspace_ids),
        )

    async def stop_workspace(self, workspace_id: str) -> Workspace:
        """Stops a workspace: ends its agent and keeps its files.

        Effect: a running task is cancelled with the reason `workspace stopped`, and its iteration
        is interrupted after 10 s. The workspace is `stopping`, then `stopped`.

        Idempotency: a call on a stopping or stopped workspace changes nothing and succeeds.

        Errors: workspace_failed if the workspace's agent died or could not start.

        Needs workspace:write, or workspace:write:own if the caller created the workspace.

        Args:
            workspace_id: The id of the workspace.

        Returns:
            Workspace: A place where an agent works, on one task at a time.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            WorkspaceFailedError: The workspace's agent died or could not start.
            WorkspaceDeletingError: The workspace is being deleted.
            CallError: Any other failure.
        """
        return await self._call(call("StopWorkspace", only(Workspace), workspace_id=workspace_id))

    async def resume_workspace(self, workspace_id: str) -> Workspace:
        """Starts a new agent for a stopped, failed or suspended workspace, in a new epoch.

        Effect: the workspace is `provisioning`, then `idle`.

        Idempotency: a call on a provisioning, idle or busy workspace changes nothing and succeeds.

        Errors: invalid_state while the workspace is stopping. org_on_hold while the organization is
        on hold, even if the workspace already has an agent.

        Needs workspace:write or tasks:write. If the caller created the workspace, the `:own` form
        of either is enough.

        Args:
            workspace_id: The id of the workspace.

        Returns:
            Workspace: A place where an agent works, on one task at a time.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            WorkspaceDeletingError: The workspace is being deleted.
            InvalidStateError: The state of the resource does not allow this call.
            OrgOnHoldError: The organization is on hold, so it gets no new task and no new agent.
            CallError: Any other failure.
        """
        return await self._call(call("ResumeWorkspace", only(Workspace), workspace_id=workspace_id))

    async def delete_workspace(self, workspace_id: str) -> Workspace:
        """Deletes a workspace, in any state, with its files, tasks, events and webhooks.

        Effect: a running task is cancelled with the reason `workspace deleted`, and its iteration
        is interrupted after 10 s. The workspace is `deleting` until its agent has ended and
        everything is removed; then the workspace is gone. Its entries in the audit log stay.
        Children of its tasks, which are in other workspaces, keep running.

        Idempotency: a repeated call changes nothing and succeeds, even after the workspace is gone.

        Errors: workspace_not_found if the workspace never existed or belongs to another
        organization, even if it was deleted there.

        Needs workspace:write, or workspace:write:own if the caller created the workspace.

        Args:
            workspace_id: The id of the workspace.

        Returns:
            Workspace: A place where an agent works, on one task at a time.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            CallError: Any other failure.
        """
        return await self._call(call("DeleteWorkspace", only(Workspace), workspace_id=workspace_id))

    def list_audit_entries(
        self,
        *,
        workspace_id: str | None = None,
        task_id: str | None = None,
        actor_id: str | None = None,
        rpc: str | None = None,
        outcome: str | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        page_size: int | None = None,
        page_token: str | None = None,
    ) -> AsyncPages[AuditEntry]:
        """Lists the entries of the audit log, newest first: who changed what, and who was refused.

        Effect: none. Idempotency: a read. The entry of an allowed call is listed as soon as the
        call is answered. The entry of a refused call is listed within a second.

        Errors: workspace_not_found if the workspace does not exist or belongs to another
        organization.

        Needs audit:read, or audit:read:own for the entries of workspaces that the caller created.

        Args:
            workspace_id: Only calls on this workspace.
            task_id: Only calls that named or changed this task.
            actor_id: Only calls of this actor, for example a user id or an API key id. At most 255
                characters.
            rpc: Only calls of this RPC, for example `CancelTask`. At most 255 characters.
            outcome: Only calls with this outcome, for example `accepted` or `permission_denied`. At
                most 255 characters.
            start_time: Only calls that arrived at this time or later, to the millisecond. A time
                without a zone is local time.
            end_time: Only calls that arrived before this time, to the millisecond. A time without a
                zone is local time.
            page_size: The number of items in one answer, 1 to 200. None for the default, 50.
            page_token: The `next_page_token` of the previous page. None begins with the first page.

        Returns:
            The items, which are fetched page by page during the iteration.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace. Raised by the
                iteration.
            CallError: Any other failure. Raised by the iteration.
        """
        return self._pages(
            "ListAuditEntries",
            page("entries", AuditEntry),
            page_size,
            page_token,
            workspace_id=optional("workspace_id", workspace_id),
            task_id=optional("task_id", task_id),
            actor_id=optional("actor_id", actor_id),
            rpc=optional("rpc", rpc),
            outcome=optional("outcome", outcome),
            start_time=timestamp("start_time", start_time),
            end_time=timestamp("end_time", end_time),
        )

    async def hold(self, *, reason: str = "", cancel_running: bool = False) -> HoldResult:
        """Puts the caller's organization on hold: until `release`, it gets no new tasks and no new
        agents.

        Effect: from the answer on, `submit_task`, `create_workspace`, `resume_workspace` and
        `resume_workspaces` answer org_on_hold. Calls that were committed before stay in effect.
        Running tasks continue, and calls that cancel, stop or read still work. With
        `cancel_running`, the call then cancels all tasks of the organization, as `cancel_tasks`
        does, with the same reason. If the call runs out of time before all tasks are cancelled,
        `remaining` is not 0: call again.

        Idempotency: while the organization is on hold, a further call does not change the caller,
        the time and the reason of the hold. With `cancel_running`, it cancels the tasks that are
        not cancelled yet.

        Needs org:hold, and workspace:write for `cancel_running`.

        Args:
            reason: Why the organization is put on hold, human-readable. `get_hold` and the errors
                of refused calls show it. At most 500 characters.
            cancel_running: Also cancels all tasks of the organization that have not ended.

        Returns:
            HoldResult: The answer to `hold`.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(
            call("HoldOrg", with_id(HoldResult), reason=reason, cancel_running=cancel_running)
        )

    async def release(self) -> Hold:
        """Ends the hold of the caller's organization.

        Effect: `submit_task`, `create_workspace` and `resume_workspace` work again.

        Idempotency: without a hold, a call changes nothing and succeeds.

        Needs org:hold.

        Returns:
            Hold: Whether an organization is on hold.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(call("ReleaseOrg", only(Hold)))

    async def get_hold(self) -> Hold:
        """Reads whether the caller's organization is on hold, since when, by whom and why.

        Needs workspace:read or workspace:read:own.

        Returns:
            Hold: Whether an organization is on hold.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(call("GetHold", only(Hold)))

    async def get_caller(self) -> CallerInfo:
        """Reads who the caller is, and what its credential allows.

        Needs no scope.

        Returns:
            CallerInfo: The caller, as its credential describes it.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(call("GetCaller", only(CallerInfo)))
