"""What was asked and what was answered, in the same words for each wire."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# In the place of a slug: there was no connection, or it broke.
NO_CONNECTION = "(no connection)"
# The caller's own time was over.
NO_ANSWER = "(no answer)"
# The caller went away before the answer, as it was meant to.
HUNG_UP = "(hung up)"
# A gRPC status without details, as the edge and the client's own library make it.
BARE = "(bare status)"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    # HTTP status, or the name of the gRPC code.
    status: str
    # Empty: a success.
    slug: str
    # The message; of a failure its details.
    body: Mapping[str, Any]
    # What is wrong with its form.
    problem: str = ""
    # Finds the call in the logs; empty: it did not get so far.
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A call with its reply."""

    # Names the call; a cancellation gives it as its reason.
    call: str
    rpc: str
    wire: str
    workspace_id: str
    # The task that was asked for; empty: whichever runs.
    task_id: str = ""
    waits: bool = False
    forces: bool = False
    # Seconds since 1970.
    sent: float
    answered: float
    status: str
    slug: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    request_id: str = ""

    def __str__(self) -> str:
        return f"{self.call} ({self.rpc} over {self.wire}, request {self.request_id or 'unknown'})"

    @property
    def is_cancel(self) -> bool:
        return self.rpc == "CancelTask"

    @property
    def outcome(self) -> str:
        """Of a cancellation that was answered."""
        return str(self.body.get("outcome", "")) if self.is_cancel and not self.slug else ""

    @property
    def promised_task_id(self) -> str:
        """The task of which this answer says that it will end `cancelled`; empty: none."""
        recorded = (
            self.is_cancel
            and self.slug == "agent_unreachable"
            and str(self.body.get("intent_recorded")).lower() == "true"
        )
        return (
            str(self.body["task_id"])
            if recorded or self.outcome in ("accepted", "already_requested")
            else ""
        )

    @property
    def told_task(self) -> Mapping[str, Any]:
        """The task that the answer shows; empty: none."""
        if self.slug:
            return {}
        if self.rpc == "GetTask":
            return self.body
        task: Mapping[str, Any] = (self.body.get("task") if self.is_cancel else None) or {}
        return task
