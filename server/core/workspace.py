"""A workspace, in which one agent works on one task at a time."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from server.core.errors import Failure


class WorkspaceStatus(StrEnum):
    """See Workspace.Status in the protos."""

    PROVISIONING = "provisioning"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


# The statuses in which a workspace has a pod or gets one.
WANTS_POD = frozenset(
    {
        WorkspaceStatus.PROVISIONING,
        WorkspaceStatus.IDLE,
        WorkspaceStatus.BUSY,
        WorkspaceStatus.STOPPING,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A workspace as the database stores it."""

    id: str
    org_id: str
    name: str
    status: WorkspaceStatus
    status_reason: str = ""
    # None when an API key created it.
    created_by_user_id: str | None
    created_at: datetime
    updated_at: datetime
    current_task_id: str | None = None
    # Incremented for each new agent. Commits of any other epoch are refused (fencing).
    epoch: int = 1
    # The `seq` of the last event in its log.
    last_seq: int = 0
    # host:port of its agent; None until the agent of this epoch has registered.
    agent_address: str | None = None
    # The agent of this epoch counts as lost after this time.
    lease_expires_at: datetime | None = None
    # Since when the agent's heartbeats have not named the current task; None while they do, or when
    # there is no task.
    task_unnamed_since: datetime | None = None
    # The run of the stack that started this epoch's pod; None until a pod was started.
    host: str | None = None

    @property
    def is_up(self) -> bool:
        """Whether an agent is there to accept tasks and cancellations."""
        return self.status in (WorkspaceStatus.IDLE, WorkspaceStatus.BUSY)

    def require_up(self) -> None:
        """Raises Failure workspace_provisioning, workspace_stopped or workspace_failed unless the
        workspace is up.
        """
        if self.is_up:
            return
        code, message = {
            WorkspaceStatus.PROVISIONING: (
                "workspace_provisioning",
                f"Workspace {self.id} is still provisioning: its agent has not registered yet. Try again when it is idle.",
            ),
            WorkspaceStatus.STOPPING: (
                "workspace_stopped",
                f"Workspace {self.id} is stopping. Resume it once it has stopped.",
            ),
            WorkspaceStatus.STOPPED: (
                "workspace_stopped",
                f"Workspace {self.id} is stopped. Resume it first.",
            ),
            WorkspaceStatus.FAILED: (
                "workspace_failed",
                f"Workspace {self.id} has failed: {self.status_reason or 'its agent is gone'}. Resume it to bring it back.",
            ),
        }[self.status]
        raise Failure(code, message, workspace_id=self.id, status=str(self.status))
