"""The asynchronous calls about tasks."""

from collections.abc import AsyncGenerator, Mapping

from evershell.client import _calls
from evershell.client._async_client import AsyncCaller
from evershell.client._fields import Seconds
from evershell.client._waiting import CancelWait, Limit, pause_before_look
from evershell.client.errors import CallError
from evershell.client.events import Event
from evershell.client.pages import AsyncPages
from evershell.client.types import CancelResult, SubmittedTask, Task, TaskLimits


class AsyncTaskCalls(AsyncCaller):
    """The calls about tasks and their events."""

    async def cancel(
        self,
        workspace_id: str,
        task_id: str | None = None,
        *,
        reason: str = "",
        wait: Seconds | None = None,
        force_after: Seconds | None = None,
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
        return await self._call(_calls.cancel(workspace_id, task_id, reason, wait, force_after))

    async def cancel_and_wait(
        self,
        workspace_id: str,
        task_id: str | None = None,
        *,
        reason: str = "",
        force_after: Seconds | None = None,
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
        waiting = CancelWait(workspace_id, task_id, reason, force_after, limit)
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
        idempotency_key: str | None = None,
    ) -> SubmittedTask:
        """Submits a task to the agent of a workspace.

        The call is repeated if the service is unavailable: its idempotency key makes sure that
        there is only one task.

        Args:
            workspace_id: The workspace, which must be idle.
            description: What to do, 1 to 100,000 characters.
            metadata: For the caller's own use: at most 32 entries, keys of 1 to 64 characters,
                values of at most 512.
            max_iterations: 1 to 1,000; a task that has not finished after that many ends `failed`.
                None for the service's default, 100.
            limits: When the service itself cancels the task. None for never.
            idempotency_key: 1 to 255 printable characters. For 24 hours, a call of the organization
                with the same key and the same request has no effect and gets the first answer.
                None for a new key: then only the repeats of this call share it.

        Returns:
            The id of the task, and its status.

        Raises:
            IdempotencyConflictError: The key was used for another request.
            WorkspaceBusyError: The workspace already has the task `error.task_id`.
            AgentUnreachableError: The agent did not answer; the task has ended `delivery_failed`.
            CallError: Any other failure.
        """
        call = _calls.submit_task(
            workspace_id, description, metadata, max_iterations, limits, idempotency_key
        )
        return await self._call(call)

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
        return await self._call(_calls.get_task(workspace_id, task_id))

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
        self, workspace_id: str, *, page_size: int | None = None, page_token: str | None = None
    ) -> AsyncPages[Task]:
        """Lists the tasks of a workspace, newest first.

        Args:
            workspace_id: The workspace.
            page_size: The number of tasks in one answer, 1 to 200. None for the default, 50.
            page_token: The `next_page_token` of the page after which the list begins.

        Returns:
            The tasks, which are fetched page by page during the iteration.

        Raises:
            WorkspaceNotFoundError: There is no such workspace. Raised by the iteration.
            CallError: Any other failure. Raised by the iteration.
        """
        return AsyncPages(
            lambda token: self._call(_calls.list_tasks(workspace_id, page_size or 0, token)),
            page_token or "",
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
            after: Begins after this `seq`; 0 for the beginning of the log.
            task_id: Yields only the events of this task, and returns after its end.
            timeout: The limit of the whole watch, in seconds or as a timedelta. None for no limit.
            reconnect_for: How long to try to connect again without success, in seconds or as a
                timedelta. The first connection has the client's timeout. One on which the service
                says nothing is given up after at most 45 s.

        Returns:
            A generator. Closing it, for example with `contextlib.closing`, ends the stream.

        Raises:
            WorkspaceNotFoundError: There is no such workspace.
            DeadlineExceededError: The timeout has passed.
            UnavailableError: The service could not be reached for that long.
            CallError: Any other failure.
        """
        return self._events(self._watch(workspace_id, after, task_id, timeout, reconnect_for))
