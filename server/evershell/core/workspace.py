"""A workspace, in which one agent works on one task at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Self

from evershell.workspace.v1 import field_limits
from evershell.workspace.v1.error_slugs import Slug

from evershell.core.errors import Failure
from evershell.core.validation import Fields

_MAX_DESCRIPTION_CHARACTERS = field_limits.CREATE_WORKSPACE_DESCRIPTION_MAX
_MAX_SKILLS = field_limits.CREATE_WORKSPACE_SKILLS_MAX
_MAX_NAME_CHARACTERS = field_limits.CREATE_WORKSPACE_SKILLS_MAX_KEY
_MAX_SKILL_CHARACTERS = field_limits.CREATE_WORKSPACE_SKILLS_MAX_VALUE


class WorkspaceStatus(StrEnum):
    """The values of Workspace.Status in the protos."""

    PROVISIONING = "provisioning"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    SUSPENDED = "suspended"
    DELETING = "deleting"


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
class AgentCard:
    """The content of a workspace's agent card, except its name. Raises Failure validation_error."""

    description: str = ""
    # Maps the name of each skill to its description.
    skills: Mapping[str, str] = field(default_factory=dict)
    # Whether anyone may read the card, without a credential.
    is_public: bool = False

    def __post_init__(self) -> None:
        fields = Fields()
        fields.text("description", self.description, max_characters=_MAX_DESCRIPTION_CHARACTERS)
        if len(self.skills) > _MAX_SKILLS:
            fields.reject(
                "skills", f"has {len(self.skills)} entries; at most {_MAX_SKILLS} are allowed"
            )
        for name, description in self.skills.items():
            fields.text("skills", name, max_characters=_MAX_NAME_CHARACTERS, required=True)
            fields.text("skills", description, max_characters=_MAX_SKILL_CHARACTERS)
        fields.check()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A workspace as the database stores it."""

    id: str
    org_id: str
    name: str
    status: WorkspaceStatus
    status_reason: str = ""
    # None if an API key created the workspace.
    created_by_user_id: str | None
    created_at: datetime
    updated_at: datetime
    current_task_id: str | None = None
    # Incremented for each new agent. Commits from any other epoch are refused (fencing).
    epoch: int = 1
    # The `seq` of the last event in the workspace's log.
    last_seq: int = 0
    # host:port of the agent; None until the agent of this epoch has registered.
    agent_address: str | None = None
    # When the lease of this epoch's agent ends. Afterwards, the agent counts as lost.
    lease_expires_at: datetime | None = None
    # Since when the agent's heartbeats have not named the current task. None while they name it, or
    # if there is no task.
    task_unnamed_since: datetime | None = None
    # How the agent of this epoch broke a rule, as a clause; None if there is no breach.
    agent_breach: str | None = None
    # The run of the stack that this epoch's pod belongs to; None until the pod is placed. A
    # suspended workspace keeps its run until the pod has ended.
    run_id: str | None = None

    @property
    def is_up(self) -> bool:
        """Whether the workspace's agent accepts tasks and cancellations."""
        return self.status in (WorkspaceStatus.IDLE, WorkspaceStatus.BUSY)

    @property
    def is_waking(self) -> bool:
        """Whether the agent is starting because a task waits for it."""
        return self.status is WorkspaceStatus.PROVISIONING and self.current_task_id is not None

    @property
    def awaits_controller(self) -> bool:
        """Whether the fleet controller must start or end the pod, or remove the workspace."""
        return self.status in (
            WorkspaceStatus.PROVISIONING,
            WorkspaceStatus.STOPPING,
            WorkspaceStatus.DELETING,
        ) or (self.status is WorkspaceStatus.SUSPENDED and self.run_id is not None)

    @property
    def awaits_removal(self) -> bool:
        """Whether the workspace is being deleted and its pod has ended (it has no run)."""
        return self.status is WorkspaceStatus.DELETING and self.run_id is None

    def is_over(self, epoch: int) -> bool:
        ends_pod = self.status is WorkspaceStatus.DELETING and not self.awaits_removal
        return epoch != self.epoch or not (self.status in WANTS_POD or ends_pod)

    def is_fenced(self, epoch: int) -> bool:
        """Whether commits of the epoch's agent are refused."""
        return self.is_over(epoch) or self.agent_breach is not None

    def in_new_epoch(self, reason: str, now: datetime) -> Self:
        """The workspace in the next epoch, without a task. The controller starts a new agent."""
        cleared = self.without_agent(WorkspaceStatus.PROVISIONING, reason, now)
        return replace(cleared, epoch=self.epoch + 1, current_task_id=None)

    def without_agent(self, status: WorkspaceStatus, reason: str, now: datetime) -> Self:
        return replace(
            self,
            agent_address=None,
            lease_expires_at=None,
            task_unnamed_since=None,
            agent_breach=None,
            run_id=None,
            status=status,
            status_reason=reason,
            updated_at=now,
        )

    def require_up(self) -> None:
        if not self.is_up:
            raise self.refusal()

    def refusal(self) -> Failure:
        """The Failure of a call for a workspace that is not up.

        The slug is workspace_provisioning, workspace_stopped, workspace_failed or
        workspace_deleting.
        """
        slug: Slug
        match self.status:
            case WorkspaceStatus.PROVISIONING:
                slug = "workspace_provisioning"
                problem = (
                    "is still provisioning: no task runs in it. It takes tasks when it is idle."
                )
            case WorkspaceStatus.STOPPING:
                slug = "workspace_stopped"
                problem = (
                    "is stopping: a task that still runs ends `cancelled`. To run tasks again, "
                    "resume it once it has stopped."
                )
            case WorkspaceStatus.STOPPED:
                slug = "workspace_stopped"
                problem = "is stopped: no task runs in it. To run tasks again, resume it."
            case WorkspaceStatus.DELETING:
                slug = "workspace_deleting"
                problem = (
                    "is being deleted: a task that still runs ends `cancelled`. Use another one."
                )
            case _:
                slug = "workspace_failed"
                reason = self.status_reason or "its agent is gone"
                problem = (
                    f"has failed: {reason}. No task runs in it. To run tasks again, resume it."
                )
        message = f"Workspace {self.id} {problem}"
        return Failure(slug, message, workspace_id=self.id, status=str(self.status))
