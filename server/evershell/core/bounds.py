"""The time bounds of a task that the control plane enforces without the agent.

A healthy agent keeps every bound. An agent that hangs, was stopped, or has lost its task does not.
The fleet controller ends the pod of an overdue agent, and the task with it. Nothing inside a pod
can therefore keep an accepted cancellation open.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from evershell.core.task import Task
from evershell.core.workspace import Workspace

# How long after `force_at` an agent may take to interrupt the iteration and commit the end.
FORCE_MARGIN = timedelta(seconds=2)
# The violation of that bound, after which the workspace is suspended.
NOT_INTERRUPTED = "its agent did not interrupt the task in time"
# How long an agent may take to end a cancelled task, beyond the limits of one model call and one
# tool call.
CANCEL_MARGIN = timedelta(seconds=30)
# How long an agent may take after an outage of the database to commit what it could not commit
# during the outage.
RECOVERY_MARGIN = timedelta(seconds=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The limits that agents are started with, in seconds."""

    model_timeout_seconds: float
    tool_timeout_seconds: float
    lease_seconds: float
    # An agent that has not registered after this time has failed to start.
    start_seconds: float = 30.0

    def violation(
        self, workspace: Workspace, task: Task | None, now: datetime, answering_since: datetime
    ) -> str | None:
        """Why the agent is overdue, as a human-readable clause; None while it keeps its bounds.

        `task` is the current task. It may be None if the task is not cancelled, because the other
        bounds need only the workspace. `answering_since` is the end of the last outage of the
        database.
        """
        if workspace.agent_breach is not None:
            return workspace.agent_breach
        if task is not None and task.cancel is not None and not task.status.is_terminal:
            force_at = task.cancel.force_at
            if force_at is not None and now > self._postponed(
                force_at + FORCE_MARGIN, answering_since
            ):
                return NOT_INTERRUPTED
            iteration = timedelta(seconds=self.model_timeout_seconds + self.tool_timeout_seconds)
            bound = task.cancel.requested_at + iteration + CANCEL_MARGIN
            if now > self._postponed(bound, answering_since):
                return "its agent did not end the cancelled task within the limits of an iteration"
        unnamed_since = workspace.task_unnamed_since
        if unnamed_since is not None and now > unnamed_since + timedelta(
            seconds=self.lease_seconds
        ):
            return "its agent did not work on the task that it was given"
        return None

    def _postponed(self, bound: datetime, answering_since: datetime) -> datetime:
        """The bound, or a later time if an outage prevented the agent from committing the end.

        No bound is postponed by more than a lease, because no agent survives a longer outage.
        """
        latest = bound + timedelta(seconds=self.lease_seconds)
        return max(bound, min(answering_since + RECOVERY_MARGIN, latest))
