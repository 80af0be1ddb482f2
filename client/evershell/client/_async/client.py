"""The client: its calls."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import datetime

from evershell.client import _calls
from evershell.client._async.caller import AsyncCaller, AsyncPages
from evershell.client._async.webhooks import AsyncWebhooks
from evershell.client._calls import (
    Seconds,
    call,
    idempotent,
    only,
    optional,
    page,
    timestamp,
    valid,
    with_id,
)
from evershell.client._repeats import (
    CancelWait,
    Limit,
    pause_before_look,
    pause_while_remaining,
)
from evershell.client.errors import CallError
from evershell.client.events import Event
from evershell.client.types import (
    AuditEntry,
    CallerInfo,
    CancelResult,
    CancelTasksResult,
    Hold,
    HoldResult,
    SubmittedTask,
    Task,
    TaskFilter,
    TaskLimits,
    Workspace,
)


class AsyncClient(AsyncCaller):
    """Calls an evershell service over gRPC, within one event loop.

        async with AsyncClient("https://acme.evershell.ai", "sk_…") as client:
            await client.cancel("ws_…", reason="it has gone wrong")

    Reads, submissions, creations, and cancellations that name their task are repeated if the
    service is unavailable or has refused the call for its rate limit, after the pause that the
    service asks for. A stop or a resumption is repeated only after a refusal for its rate limit,
    which has no effect. A cancellation without a task id is never repeated.

    Args:
        url: Where the service listens for gRPC: `https://host:port`, or `http://host:port` for
            plain text. Without a scheme, only a loopback address is plain text. Default: the
            variable EVERSHELL_URL.
        credential: An API key, a session token, or a callable that returns one, also as an
            awaitable, and is called before each call. Default: the variable EVERSHELL_API_KEY.
        timeout: The limit of each call with its retries, in seconds or as a timedelta.
        timeouts: The same for single methods, by name: `{"CancelTask": 2}`.
        max_retries: How often a call that may be repeated is repeated; 0 for never.
        metadata: Headers that are added to each call. The service ignores names that it does not
            know.
        on_answer: Called with the Answer to each attempt of a call, even a failed one, except of
            `watch`: its request id and its metadata. It must not block or raise.
        ca_file: A PEM file with the authorities to trust instead of the system's.
        cert_file: A PEM file with a client certificate, for a service that asks for one.
        key_file: The PEM file with its key.
        interceptors: Client interceptors of grpc.aio, for example to measure calls.

    Raises:
        ConfigurationError: There is no address or no credential, or one is not valid.
    """

    @property
    def webhooks(self) -> AsyncWebhooks:
        """The calls about webhooks."""
        return AsyncWebhooks(self)

    async def cancel(
        self,
        workspace_id: str,
        task_id: str | None = None,
        *,
        reason: str = "",
        wait: Seconds | None = None,
        force_after: Seconds | None = None,
        include_descendants: bool = False,
    ) -> CancelResult:
        """Cancels the task that runs in a workspace.

        The agent finishes its current iteration and starts no other, and the task ends `cancelled`.
        Without a task id, the call is never repeated: it could cancel the next task.

        Args:
            workspace_id: The workspace.
            task_id: Cancels only this task. None cancels the task that runs; an empty id is
                refused.
            reason: Human-readable; at most 500 characters. Recorded in the task and its events.
            wait: Answers when the task has ended, but no later than this: 0 to 30 seconds. It is
                added to the client's timeout. If the time is over, the result has the task as it is
                then; `cancel_and_wait` has no such limit.
            force_after: Interrupts an iteration that still runs this long after the call: 0 to
                86,400 seconds. None interrupts no iteration.
            include_descendants: Cancels every descendant that has not ended too, even if the task
                itself has ended. If the caller may not cancel one of them, nothing is cancelled.

        Returns:
            The outcome, who asked first, and the task.

        Raises:
            AgentUnreachableError: The cancellation is recorded and will be delivered, but the agent
                did not answer. Do not repeat the call without `error.task_id`.
            WorkspaceNotFoundError, TaskNotFoundError: There is nothing by this id.
            WorkspaceProvisioningError, WorkspaceStoppedError, WorkspaceFailedError: No task can run
                in this state.
            CallError: Any other failure.
        """
        return await self._call(
            _calls.cancel(workspace_id, task_id, reason, wait, force_after, include_descendants)
        )

    async def cancel_and_wait(
        self,
        workspace_id: str,
        task_id: str | None = None,
        *,
        reason: str = "",
        force_after: Seconds | None = None,
        include_descendants: bool = False,
        timeout: Seconds | None = None,
    ) -> CancelResult:
        """Cancels the task that runs in a workspace, and waits until it has ended.

        The first call is `cancel`. The wait then repeats it with the task's id, even while the
        agent cannot be reached, and for up to 5 minutes while the service is unavailable.

        Args:
            workspace_id: The workspace.
            task_id: Cancels only this task. None cancels the task that runs; an empty id is
                refused.
            reason: Human-readable; at most 500 characters.
            force_after: Interrupts an iteration that still runs this long after the call: 0 to
                86,400 seconds. None interrupts no iteration.
            include_descendants: Cancels every descendant that has not ended too. The call waits for
                the end of the task alone.
            timeout: How long to wait for the end, in seconds or as a timedelta. None waits as long
                as it takes: the service ends every accepted cancellation in bounded time.

        Returns:
            The outcome of the first call, with the task as it ended.

        Raises:
            TaskNotEndedError: The cancellation is recorded, but the task did not end in time.
            CallError: As for `cancel`, except that AgentUnreachableError is not raised once the
                cancellation is recorded.
        """
        limit = Limit(timeout, self._monotonic)
        waiting = CancelWait(workspace_id, task_id, reason, force_after, include_descendants, limit)
        while True:
            try:
                waiting.receive(await self._call(waiting.next_call()))
            except CallError as error:
                waiting.fail(error)
            pause_seconds = waiting.pause_seconds()
            if pause_seconds is None:
                assert waiting.result is not None
                return waiting.result
            await self._sleep(pause_seconds)

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

        The call is repeated if the service is unavailable: its idempotency key makes sure that
        there is only one task.

        Args:
            workspace_id: The workspace, which must be idle, or suspended: then the call also waits
                for its agent.
            description: What to do, 1 to 100,000 characters.
            metadata: For the caller's own use: at most 32 entries, keys of 1 to 64 characters,
                values of at most 512.
            max_iterations: 1 to 1,000; a task that has not finished after that many ends `failed`.
                None for the service's default, 100.
            limits: When the service itself cancels the task. None for never.
            parent_task_id: Makes the task a child of this task of the organization. None for none.
            idempotency_key: 1 to 255 printable characters. For 24 hours, a call of the organization
                with the same key and the same request has no effect and gets the first answer.
                None for a new key: then only the repeats of this call share it.

        Returns:
            The id of the task, and its status.

        Raises:
            IdempotencyConflictError: The key was used for another request.
            WorkspaceBusyError: The workspace already has the task `error.task_id`.
            ParentNotRunningError: The parent has ended or is being cancelled.
            TreeLimitReachedError: The tree has as many levels or tasks as it may have.
            AgentUnreachableError: The agent did not answer; the task has ended `delivery_failed`.
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
                limits=None if limits is None else valid("limits", limits._to_message),
                parent_task_id=optional("parent_task_id", parent_task_id),
            )
        )

    async def get_task(self, workspace_id: str, task_id: str) -> Task:
        """Reads one task.

        Args:
            workspace_id: The workspace.
            task_id: The task.

        Returns:
            The task as it is now.

        Raises:
            WorkspaceNotFoundError, TaskNotFoundError: There is nothing by this id.
            CallError: Any other failure.
        """
        return await self._call(
            call("GetTask", only(Task), workspace_id=workspace_id, task_id=task_id)
        )

    async def wait_for_task(
        self, workspace_id: str, task_id: str, *, timeout: Seconds | None = None
    ) -> Task:
        """Waits until a task has ended, without cancelling it. Reads it twice a second.

        Args:
            workspace_id: The workspace.
            task_id: The task.
            timeout: How long to wait, in seconds or as a timedelta. None waits as long as it takes.

        Returns:
            The task as it ended.

        Raises:
            TaskNotEndedError: The task did not end in time.
            CallError: As for `get_task`.
        """
        limit = Limit(timeout, self._monotonic)
        while True:
            task = await self.get_task(workspace_id, task_id)
            pause_seconds = pause_before_look(task, limit)
            if pause_seconds is None:
                return task
            await self._sleep(pause_seconds)

    def list_tasks(
        self,
        workspace_id: str | None = None,
        *,
        parent_task_id: str | None = None,
        root_task_id: str | None = None,
        page_size: int | None = None,
        page_token: str | None = None,
    ) -> AsyncPages[Task]:
        """Lists the tasks of a workspace or of a tree, newest first.

        Args:
            workspace_id: Only tasks of this workspace. May be None for the tasks of a tree.
            parent_task_id: Only the children of this task.
            root_task_id: Only this task and its descendants, if it is the root of its tree.
            page_size: The number of tasks in one answer, 1 to 200. None for the default, 50.
            page_token: The `next_page_token` of the page after which the list begins.

        Returns:
            The tasks, which are fetched page by page during the iteration.

        Raises:
            WorkspaceNotFoundError: There is no such workspace. Raised by the iteration.
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
        )

    def watch(
        self,
        workspace_id: str,
        *,
        after: int = 0,
        task_id: str | None = None,
        timeout: Seconds | None = None,
        reconnect_for: Seconds = 300.0,
    ) -> AsyncGenerator[Event, None]:
        """Follows the log of a workspace: yields its events, and waits for new ones.

        If the connection breaks, the service restarts, or a session token from a callable expires,
        it connects again and goes on after the last event. No event is lost or repeated.

        Args:
            workspace_id: The workspace.
            after: Begins after this `seq`; 0 for the first event there is.
            task_id: Yields only the events of this task, and returns after its end.
            timeout: The limit of the whole watch, in seconds or as a timedelta. None for no limit.
            reconnect_for: How long to try to connect again without success, in seconds or as a
                timedelta. The first connection has the client's timeout. One on which the service
                says nothing is given up after 45 to 60 s.

        Returns:
            A generator. Closing it, for example with `contextlib.closing`, ends the stream.

        Raises:
            WorkspaceNotFoundError: There is no such workspace.
            DeadlineExceededError: The timeout has passed.
            UnavailableError: The service could not be reached for that long.
            CallError: Any other failure.
        """
        return self._events(self._watch(workspace_id, after, task_id, timeout, reconnect_for))

    async def cancel_tasks(
        self,
        *,
        filter: TaskFilter | None = None,  # noqa: A002 - the name of the field
        all: bool = False,  # noqa: A002 - the name of the field
        reason: str = "",
        force_after: Seconds | None = None,
        dry_run: bool = False,
    ) -> CancelTasksResult:
        """Cancels the tasks of the caller's organization that match and have not ended.

        Give either `filter` or `all`: a call with neither, with both or with an empty filter is
        refused.

        At most 1,000 tasks, the oldest first: call again until `remaining` is 0, or use
        `cancel_all_tasks`. With `:own` permissions, only tasks in the caller's workspaces match.

        Args:
            filter: Which tasks.
            all: Every task.
            reason: Human-readable; at most 500 characters. Recorded in the tasks and their events.
            force_after: Interrupts iterations that still run this long after the call: 0 to 86,400
                seconds. None interrupts no iteration.
            dry_run: Counts the tasks and cancels none.

        Returns:
            The counts, and the outcome for each task.

        Raises:
            CallError: The call has failed. After UnavailableError, some of the tasks may be
                cancelled; the call can be repeated without harm.
        """
        return await self._call(_calls.cancel_tasks(filter, all, reason, force_after, dry_run))

    async def cancel_all_tasks(
        self,
        *,
        filter: TaskFilter | None = None,  # noqa: A002 - the name of the field
        all: bool = False,  # noqa: A002 - the name of the field
        reason: str = "",
        force_after: Seconds | None = None,
    ) -> AsyncIterator[CancelTasksResult]:
        """Repeats `cancel_tasks` until nothing remains.

        Args:
            filter: Which tasks.
            all: Every task.
            reason: Human-readable; at most 500 characters.
            force_after: As for `cancel_tasks`.

        Returns:
            An iterator over the results of the calls. Each call is made when its result is asked
            for.

        Raises:
            CallError: As for `cancel_tasks`. Raised by the iteration.
        """
        pause_seconds = 0.0
        while True:
            result = await self.cancel_tasks(
                filter=filter, all=all, reason=reason, force_after=force_after
            )
            yield result
            if not result.remaining:
                return
            pause_seconds = pause_while_remaining(result, pause_seconds)
            await self._sleep(pause_seconds)

    async def hold(self, *, reason: str = "", cancel_running: bool = False) -> HoldResult:
        """Puts the caller's organization on hold: it gets no new task and no new agent.

        Tasks that run go on, unless they are to be cancelled; cancelling, stopping and reading
        work. A hold in force does not change. Needs the scope `org:hold`.

        Args:
            reason: Human-readable; at most 500 characters. The refused calls show it.
            cancel_running: Cancels all tasks that have not ended, which also needs the scope
                `workspace:write`. If tasks remain, call again.

        Returns:
            The hold in force, with its first caller, time and reason, and what was cancelled.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(
            call("HoldOrg", with_id(HoldResult), reason=reason, cancel_running=cancel_running)
        )

    async def release(self) -> Hold:
        """Ends the hold of the caller's organization. Needs the scope `org:hold`.

        Returns:
            The hold, which is not in force.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(call("ReleaseOrg", only(Hold)))

    async def get_hold(self) -> Hold:
        """Reads whether the caller's organization is on hold.

        Returns:
            The hold; `on_hold` says whether it is in force.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(call("GetHold", only(Hold)))

    async def get_caller(self) -> CallerInfo:
        """Reads whose credential this is, and what it allows.

        Returns:
            The caller, with the scopes and the expiry of the credential.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(call("GetCaller", only(CallerInfo)))

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

        The call is repeated if the service is unavailable: its idempotency key makes sure that
        there is only one workspace.

        Args:
            name: Human-readable; at most 200 characters.
            description: What its agent does, for its agent card of A2A; at most 2,000 characters.
            skills: The skills on the agent card: a description for each name.
            public_card: Whether anyone may read the agent card, without a credential.
            idempotency_key: 1 to 255 printable characters. For 24 hours, a call of the organization
                with the same key and the same request has no effect and gets the first answer.
                None for a new key: then only the repeats of this call share it.

        Returns:
            The workspace, which is `provisioning` until its agent has registered.

        Raises:
            IdempotencyConflictError: The key was used for another request.
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

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace as it is now.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            CallError: Any other failure.
        """
        return await self._call(call("GetWorkspace", only(Workspace), workspace_id=workspace_id))

    def list_workspaces(
        self, *, page_size: int | None = None, page_token: str | None = None
    ) -> AsyncPages[Workspace]:
        """Lists the workspaces of the caller's organization, newest first.

        Args:
            page_size: The number of workspaces in one answer, 1 to 200. None for the default, 50.
            page_token: The `next_page_token` of the page after which the list begins.

        Returns:
            The workspaces, which are fetched page by page during the iteration.

        Raises:
            CallError: The call has failed. Raised by the iteration.
        """
        return self._pages("ListWorkspaces", page("workspaces", Workspace), page_size, page_token)

    async def stop_workspace(self, workspace_id: str) -> Workspace:
        """Stops a workspace: ends its agent and keeps its files.

        A running task is cancelled, and its iteration is interrupted after 10 seconds. A call on a
        stopping or stopped workspace changes nothing.

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace, which is `stopping`, then `stopped`.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            WorkspaceFailedError: Its agent died or could not start.
            WorkspaceDeletingError: It is being deleted.
            CallError: Any other failure.
        """
        return await self._call(call("StopWorkspace", only(Workspace), workspace_id=workspace_id))

    async def resume_workspace(self, workspace_id: str) -> Workspace:
        """Starts a new agent for a stopped or failed workspace.

        A call on a workspace that is provisioning or up changes nothing.

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace, which is `provisioning`, then `idle`.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            InvalidStateError: The workspace is still stopping.
            WorkspaceDeletingError: The workspace is being deleted.
            CallError: Any other failure.
        """
        return await self._call(call("ResumeWorkspace", only(Workspace), workspace_id=workspace_id))

    async def delete_workspace(self, workspace_id: str) -> Workspace:
        """Deletes a workspace, in any state, with its files, tasks, events and webhooks.

        A running task is cancelled, and its iteration is interrupted after 10 seconds. A repeated
        call changes nothing, also when the workspace is gone.

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace, which is `deleting` until it is gone.

        Raises:
            WorkspaceNotFoundError: The caller's organization has never had such a workspace.
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
        """Lists the audit log, newest first: who changed what, or was refused.

        Args:
            workspace_id: Only calls about this workspace.
            task_id: Only calls about this task.
            actor_id: Only calls of this user or API key, by id.
            rpc: Only calls of this method, for example `CancelTask`.
            outcome: Only calls with this outcome, for example `accepted` or `permission_denied`.
            start_time: Only calls from this time on. A time without a zone is local time.
            end_time: Only calls before this time.
            page_size: The number of entries in one answer, 1 to 200. None for the default, 50.
            page_token: The `next_page_token` of the page after which the list begins.

        Returns:
            The entries, which are fetched page by page during the iteration.

        Raises:
            WorkspaceNotFoundError: There is no such workspace. Raised by the iteration.
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
