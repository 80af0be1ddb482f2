"""A hold: until it is released, an organization gets no new task and no new agent."""

from dataclasses import dataclass
from datetime import UTC, datetime

from evershell.core.errors import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A hold in force. It names the call that set it first."""

    org_id: str
    # The user's id, or the API key's.
    held_by: str
    held_since: datetime
    reason: str

    def refusal(self) -> Failure:
        """The error of a call that the hold refuses."""
        because = f": {self.reason}" if self.reason else ""
        since = self.held_since.astimezone(UTC).replace(tzinfo=None)
        message = (
            f"{self.held_by} put your organization on hold at "
            f"{since.isoformat(timespec='seconds')}Z{because}. New tasks and agents are "
            "refused until the hold is released. Cancelling, stopping and reading work."
        )
        return Failure(
            "org_on_hold",
            message,
            org_id=self.org_id,
            held_by=self.held_by,
            held_since=f"{since.isoformat()}Z",
            hold_reason=self.reason,
        )
