"""The time bounds of a task that the control plane enforces without the agent.

A healthy agent keeps every bound while the control plane answers it. An agent that hangs, was
stopped, or has lost its task does not. The fleet controller ends the pod of an overdue agent, and
the task with it. Therefore nothing inside a pod can prevent the end of a cancelled task.

While the control plane does not answer, a bound is postponed, but by at most one lease. Only what
the control plane itself observes counts: nothing that an agent sends postpones a bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from evershell.core.task import Task
from evershell.core.workspace import Workspace, WorkspaceStatus

# How long after `force_at` an agent may take to interrupt the iteration and commit the end.
FORCE_MARGIN = timedelta(seconds=2)
# How long an agent may take to end a cancelled task, beyond the limits of one model call and one
# tool call.
CANCEL_MARGIN = timedelta(seconds=30)
# How long an agent may take to send its pending messages once the control plane answers again. The
# agent waits up to 10 s before it retries (agents/lease.py), and gives up the retry after 3 s.
RECOVERY_MARGIN = timedelta(seconds=15)
# Like RECOVERY_MARGIN, but for the end of a forced task: the agent waits only up to 1 s before it
# retries.
FORCE_RECOVERY_MARGIN = timedelta(seconds=5)
# A program that is further behind its schedule than this was paused or is overloaded.
LATE_SECONDS = 0.25
# How often a worker gives a sign of life.
SIGN_OF_LIFE_SECONDS = 1.0
# A worker that is silent for longer than this is assumed not to answer agents in time either.
SILENT_SECONDS = SIGN_OF_LIFE_SECONDS + LATE_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The limits that agents are started with, in seconds."""

    model_timeout_seconds: float
    tool_timeout_seconds: float
    lease_seconds: float
    # An agent that has not registered after this time has failed to start.
    start_seconds: float = 30.0

    def violation(
        self, workspace: Workspace, task: Task | None, now: datetime, last_outage_at: datetime
    ) -> str | None:
        """Why the agent is overdue, as a human-readable clause; None while it keeps its bounds.

        `task` is the current task. It may be None if the task is not cancelled, because the other
        bounds need only the workspace. `last_outage_at` is the last time at which the control plane
        was known not to answer.
        """
        lease = timedelta(seconds=self.lease_seconds)

        def is_over(bound: datetime, recovery: timedelta = RECOVERY_MARGIN) -> bool:
            # An outage postpones a bound by at most the length of a lease, because an agent ends
            # when its lease expires.
            return now > max(bound, min(last_outage_at + recovery, bound + lease))

        if workspace.agent_breach is not None:
            return workspace.agent_breach
        if task is not None and task.cancel is not None and not task.status.is_terminal:
            force_at = task.cancel.force_begins_at
            if force_at is not None and is_over(force_at + FORCE_MARGIN, FORCE_RECOVERY_MARGIN):
                return "its agent did not interrupt the task in time"
            iteration = timedelta(seconds=self.model_timeout_seconds + self.tool_timeout_seconds)
            if is_over(task.cancel.requested_at + iteration + CANCEL_MARGIN):
                return "its agent did not end the cancelled task within the limits of an iteration"
        unnamed_since = workspace.task_unnamed_since
        if unnamed_since is not None and is_over(unnamed_since + lease):
            return "its agent did not work on the task that it was given"
        start = timedelta(seconds=self.start_seconds)
        if workspace.status is WorkspaceStatus.PROVISIONING and is_over(
            workspace.updated_at + start
        ):
            return f"its agent did not register within {self.start_seconds:g} s"
        return None

    def are_answering(self, silences: Sequence[float]) -> bool:
        """Whether the workers answer.

        `silences` has, for each worker, the seconds since its last sign of life.

        A worker that has been silent for a whole lease is ignored: its host may be gone, and no
        agent can still wait for it.
        """
        return bool(silences) and not any(
            SILENT_SECONDS < each < self.lease_seconds for each in silences
        )
