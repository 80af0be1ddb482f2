"""The time bounds of a task that the control plane enforces by itself.

A healthy agent keeps every bound by itself. An agent that hangs, was stopped, or has lost its task
does not. The fleet controller therefore ends the pod of an overdue agent, and the task with it, so
nothing that happens inside a pod can keep an accepted cancellation open.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from server.core.task import Task
from server.core.workspace import Workspace

# How long after `force_at` an agent may take to break the iteration off and commit the end.
FORCE_MARGIN = timedelta(seconds=2)
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

    def violation(
        self, workspace: Workspace, task: Task | None, now: datetime, answering_since: datetime
    ) -> str | None:
        """Why the workspace's agent is overdue, as a clause for people; None while it keeps its
        bounds.

        `task` is the current task. Pass None for a workspace without a cancelled task: the bounds
        of a cancellation do not apply. `answering_since` is the end of the last outage of the
        database.
        """
        if task is not None and task.cancel is not None and not task.status.is_terminal:
            force_at = task.cancel.force_at
            if force_at is not None and now > self._postponed(
                force_at + FORCE_MARGIN, answering_since
            ):
                return "its agent did not break off the task in time"
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
        """The bound, or a later time when an outage kept the agent from committing the end.

        An agent survives no outage that is longer than its lease, so no bound is postponed further.
        """
        latest = bound + timedelta(seconds=self.lease_seconds)
        return max(bound, min(answering_since + RECOVERY_MARGIN, latest))
