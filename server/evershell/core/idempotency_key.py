"""The idempotency keys of callers, and what is stored of the first call with each key."""

from dataclasses import dataclass
from datetime import datetime, timedelta

MAX_KEY_CHARACTERS = 255
# How long a key is kept, from its first call.
KEPT = timedelta(hours=24)


class KeyTakenError(Exception):
    """An earlier call has stored the key. This call has committed nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstCall:
    """The first call with a key. The organization has no other one with this key within KEPT."""

    org_id: str
    key: str
    fingerprint: bytes
    called_at: datetime
    # What the call created. It has a task if it is a SubmitTask.
    workspace_id: str
    task_id: str = ""
    # SubmitTask: the status of the task in the answer, or the slug of the error. Empty until it is
    # known. CreateWorkspace: empty, because its answer follows from the workspace.
    answer: str = ""

    @property
    def expires_before(self) -> datetime:
        """This call may reuse a key whose first call was not made after this time."""
        return self.called_at - KEPT


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The key of a call, as its caller chose it."""

    key: str
    # Equal for equal requests of the same method.
    fingerprint: bytes

    def first_call(
        self, org_id: str, called_at: datetime, workspace_id: str, task_id: str = ""
    ) -> FirstCall:
        """The call, if it turns out to be the first one with this key."""
        return FirstCall(
            org_id=org_id,
            key=self.key,
            fingerprint=self.fingerprint,
            called_at=called_at,
            workspace_id=workspace_id,
            task_id=task_id,
        )
