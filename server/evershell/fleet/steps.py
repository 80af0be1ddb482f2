"""The steps that start, check, end and remove the pod of a workspace.

A step compares what the database wants with what runs, and acts on the difference. It ends or
starts a pod and commits in such an order that a controller may die at any point: the next leader
continues.
"""

from collections.abc import Callable
from datetime import datetime

import structlog

from evershell.core import workspace_lifecycle
from evershell.core.change import Change, Locked
from evershell.core.due import Due, Kind
from evershell.core.task import Task
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.fleet.due import DueReader, Overdue
from evershell.fleet.parts import Parts
from evershell.pod.last_line import reason_in

log = structlog.get_logger()
# How long a pod may take to end before it is killed.
END_GRACE_SECONDS = 3.0


class NotLeadingError(Exception):
    """The controller's term of leadership has ended."""


class Steps:
    """The steps of one term of leadership.

    Each step may raise UnavailableError. After the end of the term, a step raises NotLeadingError
    before it starts, ends or removes a pod.
    """

    def __init__(
        self,
        parts: Parts,
        reader: DueReader,
        overdue: Overdue,
        watch_exit: Callable[[Workspace], None],
    ) -> None:
        """`watch_exit` is called with each workspace whose agent should run."""
        self._parts = parts
        self._store, self._pods, self._clock = parts.store, parts.pods, parts.clock
        self._reader = reader
        self._overdue = overdue
        self._watch_exit = watch_exit
        # The epoch of the last pod that this controller has started, by workspace id.
        self._started: dict[str, int] = {}

    async def reconcile(self, due: Due) -> None:
        """Starts or ends the pod of the workspace, if needed."""
        workspace = due.workspace
        if workspace.status is WorkspaceStatus.SUSPENDED:
            await self._end_suspended(workspace)
            return
        if workspace.run_id != self._parts.run_id:
            workspace = await self._reconcile_run(workspace)
        if workspace.run_id != self._parts.run_id:
            return
        if workspace.status in (WorkspaceStatus.STOPPING, WorkspaceStatus.DELETING):
            await self._reconcile_stop(workspace)
        elif self._needs_start(workspace):
            await self._reconcile_start(workspace)
        else:
            is_overdue = due.kind in (Kind.OVERDUE, Kind.LEASE)
            await self._reconcile_agent(workspace, is_overdue=is_overdue)

    async def _reconcile_run(self, workspace: Workspace) -> Workspace:
        """Ends the pods of an earlier run of the stack, then assigns the workspace to this run.

        The assignment comes last, because it ends the task of the earlier run.
        """
        stopped = workspace.run_id is None or await self._end_pod(workspace, END_GRACE_SECONDS)
        return await self._apply(
            workspace,
            lambda locked, now: workspace_lifecycle.place(
                locked, workspace.epoch, self._parts.run_id, now, work_stopped=stopped
            ),
        )

    def _needs_start(self, workspace: Workspace) -> bool:
        """Whether the agent must be started.

        If another controller started the agent, and the agent ended before it registered, that
        controller may have died during the start. The agent is then started once more.
        """
        if workspace.status is not WorkspaceStatus.PROVISIONING:
            return False
        if not self._pods.was_started(workspace):
            return True
        return self._started.get(workspace.id) != workspace.epoch and not self._pods.is_alive(
            workspace
        )

    async def _reconcile_start(self, workspace: Workspace) -> None:
        if not self._pods.has_never_run(workspace.id):
            # Another controller may have started the pod and died before the agent registered.
            await self._end_pod(workspace, 0)
        current = await self._store.get_workspace(workspace.id)
        if (
            current is None
            or current.epoch != workspace.epoch
            or current.status is not WorkspaceStatus.PROVISIONING
        ):
            # While the pod was being ended, another controller may have become the leader and
            # started a pod of a later epoch.
            return
        self._require_term()
        self._started[workspace.id] = workspace.epoch
        try:
            await self._pods.start(workspace)
        except OSError as error:
            await self._fail(
                workspace, f"its agent could not be started: {error.strerror or error}"
            )
            return
        log.info("pod_started", workspace_id=workspace.id, epoch=workspace.epoch)
        self._watch_exit(workspace)

    async def _reconcile_agent(self, workspace: Workspace, *, is_overdue: bool) -> None:
        """Ends the pod if its agent has ended or is overdue, or its workspace was idle too long."""
        if not self._pods.is_alive(workspace):
            await self._fail(workspace, self._failure_reason(workspace))
        elif is_overdue:
            await self._end_overdue(workspace)
        elif self._is_idle_too_long(workspace):
            await self._suspend(workspace)
        else:
            self._watch_exit(workspace)

    def _is_idle_too_long(self, workspace: Workspace) -> bool:
        after = self._parts.suspend_after
        return (
            after is not None
            and workspace.status is WorkspaceStatus.IDLE
            and self._clock() >= workspace.updated_at + after
        )

    async def _suspend(self, workspace: Workspace) -> None:
        suspended = await self._apply(
            workspace,
            lambda locked, now: workspace_lifecycle.suspend(locked, workspace.updated_at, now),
        )
        if suspended.status is WorkspaceStatus.SUSPENDED:
            await self._end_suspended(suspended)

    async def _end_suspended(self, workspace: Workspace) -> None:
        """Ends the pod of a suspended workspace.

        The agent is fenced, so it would also end by itself.
        """
        await self._end_pod(workspace, END_GRACE_SECONDS)
        await self._apply(
            workspace,
            lambda locked, _: workspace_lifecycle.finish_suspension(locked, workspace.epoch),
        )
        log.info("pod_suspended", workspace_id=workspace.id, epoch=workspace.epoch)

    async def _end_overdue(self, workspace: Workspace) -> None:
        """Ends the pod of an overdue agent, and its task.

        First reads the workers, the workspace, its task and its lease again: since the scan, a
        worker may have stopped answering, the task may have ended, or the agent may have recovered.
        """
        await self._reader.read_workers()
        current = await self._store.get_workspace(workspace.id)
        if current is None or current.epoch != workspace.epoch:
            return
        task = (
            await self._store.get_task(current.id, current.current_task_id)
            if current.current_task_id
            else None
        )
        lease_seconds_left = await self._store.lease_seconds_left(current.id)
        reason = self._overdue.reason(current, task, lease_seconds_left)
        if reason is not None:
            explanation = self._pods.explain(current)
            await self._fail(current, f"{reason}: {explanation}" if explanation else reason, task)

    def _failure_reason(self, workspace: Workspace) -> str:
        if explanation := self._pods.explain(workspace):
            return explanation
        log_tail = self._pods.log_tail(workspace.id)
        if workspace.status is WorkspaceStatus.PROVISIONING and log_tail:
            return f"its agent ended before it registered: {reason_in(log_tail)}"
        return "its agent's process ended unexpectedly"

    async def _fail(self, workspace: Workspace, reason: str, overdue: Task | None = None) -> None:
        """Ends everything that runs in the pod, and then the task.

        What happens next depends on the state of the workspace in the database. For an
        overdue agent, `overdue` is its task as it was before the pod was ended.
        """
        stopped = await self._end_pod(workspace, 0)
        await self._apply(
            workspace,
            lambda locked, now: workspace_lifecycle.lose_agent(
                locked, workspace.epoch, reason, now, work_stopped=stopped, overdue=overdue
            ),
        )
        log.warning("agent_lost", workspace_id=workspace.id, epoch=workspace.epoch, reason=reason)

    async def _reconcile_stop(self, workspace: Workspace) -> None:
        """Ends the pod of a workspace that is stopping or deleting, once its task has ended.

        Does not wait for a task that is overdue.
        """
        if workspace.current_task_id is not None and self._pods.is_alive(workspace):
            task = await self._store.get_task(workspace.id, workspace.current_task_id)
            if (
                task is not None
                and not task.status.is_terminal
                and not await self._is_overdue(workspace, task)
            ):
                return
        stopped = await self._end_pod(workspace, END_GRACE_SECONDS)
        await self._apply(
            workspace,
            lambda locked, now: workspace_lifecycle.finish_stop(
                locked, workspace.epoch, now, work_stopped=stopped
            ),
        )
        log.info("pod_stopped", workspace_id=workspace.id, epoch=workspace.epoch)

    async def _is_overdue(self, workspace: Workspace, task: Task) -> bool:
        """Whether the task is overdue, also after the state of the workers was read again."""
        if not self._overdue.violation(workspace, task):
            return False
        await self._reader.read_workers()
        return self._overdue.violation(workspace, task) is not None

    async def remove(self, due: Due) -> None:
        """Removes the files of a deleted workspace, and then its rows.

        First ends its pods: a pod of an earlier epoch may still run if the workspace was woken or
        has failed, because both clear `run_id`. If something cannot be removed yet, the next scan
        tries again.
        """
        workspace = due.workspace
        await self._end_pod(workspace, 0)
        self._require_term()
        if await self._pods.remove(workspace.id) and await self._store.remove_workspace(
            workspace.id
        ):
            self._started.pop(workspace.id, None)
            log.info("workspace_removed", workspace_id=workspace.id)

    async def _end_pod(self, workspace: Workspace, grace_seconds: float) -> bool:
        self._require_term()
        return await self._pods.end(workspace, grace_seconds)

    def _require_term(self) -> None:
        """Raises NotLeadingError after the term.

        A controller that was frozen continues with outdated state. The store refuses its changes if
        the epoch is outdated, but starting or ending a pod does not go through the store.
        """
        if not self._parts.leads():
            raise NotLeadingError

    async def _apply(
        self, workspace: Workspace, decide: Callable[[Locked, datetime], Change]
    ) -> Workspace:
        change = await self._store.transition(
            workspace.id, lambda locked: decide(locked, self._clock())
        )
        return change.workspace if change is not None else workspace
