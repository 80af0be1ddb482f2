"""The calls that cancel tasks, wait for their end, and follow them."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from evershell.backoff import backoff
from evershell.client import _calls
from evershell.client._async.plain_calls import AsyncPlainCalls
from evershell.client._calls import Seconds, optional
from evershell.client._repeats import (
    CancelWait,
    Limit,
    OrganizationWatch,
    WorkspaceWatch,
    pause_before_look,
)
from evershell.client.answers import OrganizationEvent
from evershell.client.errors import CallError
from evershell.client.events import Event
from evershell.client.types import (
    CancelResult,
    CancelTasksResult,
    ResumeWorkspacesResult,
    Task,
    TaskFilter,
    WorkspaceFilter,
)

Bulk = TypeVar("Bulk", CancelTasksResult, ResumeWorkspacesResult)


class AsyncTaskCalls(AsyncPlainCalls):
    """The calls that cancel tasks, wait for their end, and follow them."""

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
            wait: Answers when the task has ended, but no later than this: 0 to 30 seconds. This
                time is added to the client's timeout. If the task has not ended by then, the result
                shows it as it is at that moment. `cancel_and_wait` can wait longer.
            force_after: Interrupts an iteration that still runs this long after the call: 0 to
                86,400 seconds. None does not interrupt the iteration.
            include_descendants: Also cancels the descendants that have not ended, even if the task
                itself has ended. If the caller may not cancel one of these tasks, none is
                cancelled.

        Returns:
            The outcome, who asked first, and the task.

        Raises:
            AgentUnreachableError: The cancellation is recorded and will be delivered, but the agent
                did not answer. Do not repeat the call without `error.task_id`.
            WorkspaceNotFoundError, TaskNotFoundError: No workspace or no task has this id.
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
                86,400 seconds. None does not interrupt the iteration.
            include_descendants: Also cancels the descendants that have not ended. The call waits
                only for the end of the task itself.
            timeout: How long to wait for the end, in seconds or as a timedelta. None waits as long
                as it takes: the service ends every cancelled task in bounded time.

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
        the watch reconnects and continues after the last event. No event is lost or repeated.

        Args:
            workspace_id: The workspace.
            after: Begins after this `seq`; 0 begins with the first event.
            task_id: Yields only the events of this task, and returns after its end.
            timeout: The limit of the whole watch, in seconds or as a timedelta. None for no limit.
            reconnect_for: How long to keep trying to reconnect, in seconds or as a timedelta. The
                first connection has the client's timeout. A connection on which nothing arrives is
                given up after 8 to 11 s.

        Returns:
            A generator. Closing it, for example with `contextlib.aclosing`, ends the stream.

        Raises:
            WorkspaceNotFoundError: There is no such workspace.
            ValidationError: The log ends before `after`, or the next event was removed.
            DeadlineExceededError: The timeout has passed.
            UnavailableError: The service could not be reached for `reconnect_for`.
            CallError: Any other failure.
        """
        limits = self._limits("WatchEvents", timeout, reconnect_for)
        named = optional("task_id", task_id)
        return self._events(WorkspaceWatch(workspace_id, after, named, limits))

    async def list_events(
        self,
        workspace_id: str,
        *,
        before: int = 0,
        page_size: int | None = None,
        omit_outputs: bool = False,
    ) -> tuple[Event, ...]:
        """Lists the last events of a workspace, newest first.

        Args:
            workspace_id: The workspace.
            before: Only events with a lower `seq`, to read on. 0 begins with the newest event.
            page_size: The maximum number of events, 1 to 200. None for the default, 50. There may
                be fewer if they are large, but at least one if there is one.
            omit_outputs: Leaves the `output` of tool results empty.

        Returns:
            The events.

        Raises:
            WorkspaceNotFoundError: There is no such workspace.
            CallError: Any other failure.
        """
        return await self._call(_calls.list_events(workspace_id, before, page_size, omit_outputs))

    def watch_organization(
        self,
        *,
        after: int = 0,
        timeout: Seconds | None = None,
        reconnect_for: Seconds = 300.0,
    ) -> AsyncGenerator[OrganizationEvent, None]:
        """Follows all workspaces of the organization: yields their events, and waits for new ones.

        Reconnects and continues like `watch`. With `workspace:read:own`, yields only the events of
        the workspaces that the caller created.

        Args:
            after: Begins after this position; 0 begins with new events, and first yields the
                position where it begins. List the workspaces only then, to miss nothing.
            timeout: The limit of the whole watch, in seconds or as a timedelta. None for no limit.
            reconnect_for: As for `watch`.

        Returns:
            A generator, as for `watch`. An item without an event has only the position that the
            watch has come to. It is yielded every 4 s while there is no event.

        Raises:
            ValidationError: The log of all organizations ends before `after`, or has more than
                100,000 positions after it. List the workspaces again, and begin with 0.
            DeadlineExceededError: The timeout has passed.
            UnavailableError: The service could not be reached for `reconnect_for`.
            CallError: Any other failure.
        """
        limits = self._limits("WatchOrganization", timeout, reconnect_for)
        return self._events(OrganizationWatch(after, limits))

    async def cancel_tasks(
        self,
        *,
        filter: TaskFilter | None = None,  # noqa: A002 - the name of the field
        all: bool = False,  # noqa: A002 - the name of the field
        reason: str = "",
        force_after: Seconds | None = None,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> CancelTasksResult:
        """Cancels the tasks of the caller's organization that match and have not ended.

        Give either `filter` or `all`: a call with neither, with both or with an empty filter is
        refused.

        A call cancels at most 1,000 tasks, the oldest first: call again until `remaining` is 0, or
        use `cancel_all_tasks`. With `:own` permissions, only tasks in the caller's workspaces
        match.

        Args:
            filter: Which tasks.
            all: Every task.
            reason: Human-readable; at most 500 characters. Recorded in the tasks and their events.
            force_after: Interrupts iterations that still run this long after the call: 0 to 86,400
                seconds. None does not interrupt the iteration.
            dry_run: Only reports the tasks that match, and does not cancel them.
            idempotency_key: 1 to 255 printable ASCII characters. For 24 hours, a call of the same
                user or API key with this key and the same request has no effect and gets the first
                answer. None for a new key: then only the repeats of this call share it.

        Returns:
            The counts, and the outcome for each task.

        Raises:
            IdempotencyConflictError: The caller has already used the idempotency key for another
                request within the last 24 hours.
            CallError: Any other failure. After UnavailableError, the tasks may be cancelled; the
                call can be repeated without harm.
        """
        return await self._call(
            _calls.cancel_tasks(filter, all, reason, force_after, dry_run, idempotency_key)
        )

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
        async for result in self._until_done(
            lambda: self.cancel_tasks(
                filter=filter, all=all, reason=reason, force_after=force_after
            )
        ):
            yield result

    async def resume_workspaces(
        self,
        *,
        filter: WorkspaceFilter | None = None,  # noqa: A002 - the name of the field
        all: bool = False,  # noqa: A002 - the name of the field
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> ResumeWorkspacesResult:
        """Resumes the failed workspaces of the caller's organization that match.

        Give either `filter` or `all`, as for `cancel_tasks`. A call resumes at most 250 workspaces,
        the oldest first: call again until `remaining` is 0, or use `resume_all_workspaces`. With
        `tasks:write:own`, only the caller's workspaces match.

        Args:
            filter: Which workspaces.
            all: Every failed workspace.
            dry_run: Only reports the workspaces that match, and does not resume them.
            idempotency_key: As for `cancel_tasks`.

        Returns:
            The counts, and the outcome for each workspace.

        Raises:
            OrgOnHoldError: The organization is on hold.
            IdempotencyConflictError: The caller has already used the idempotency key for another
                request within the last 24 hours.
            CallError: Any other failure.
        """
        return await self._call(_calls.resume_workspaces(filter, all, dry_run, idempotency_key))

    async def resume_all_workspaces(
        self,
        *,
        filter: WorkspaceFilter | None = None,  # noqa: A002 - the name of the field
        all: bool = False,  # noqa: A002 - the name of the field
    ) -> AsyncIterator[ResumeWorkspacesResult]:
        """Repeats `resume_workspaces` until nothing remains.

        Args:
            filter: Which workspaces.
            all: Every failed workspace.

        Returns:
            An iterator over the results of the calls. Each call is made when its result is asked
            for.

        Raises:
            CallError: As for `resume_workspaces`. Raised by the iteration.
        """
        async for result in self._until_done(
            lambda: self.resume_workspaces(filter=filter, all=all)
        ):
            yield result

    async def _until_done(self, call: Callable[[], Awaitable[Bulk]]) -> AsyncIterator[Bulk]:
        """Repeats the call until nothing remains. Yields each result."""
        # The number of calls in a row that changed nothing because other transactions had locked
        # what matches.
        failures = 0
        while True:
            result = await call()
            yield result
            if not result.remaining:
                return
            failures = 0 if result.accepted else failures + 1
            await self._sleep(backoff(failures, first=0.1, longest=1.0))
