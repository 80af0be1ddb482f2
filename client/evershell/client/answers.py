"""What the service answered to one attempt of a call, beside the result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from evershell.client.errors import CallError


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one attempt. A call that is repeated has several."""

    rpc: str
    """The method of the API, for example `CancelTask`."""
    request_id: str
    """Identifies the attempt in the log of the service; empty if it did not get there."""
    metadata: Mapping[str, str | bytes] = field(default_factory=dict, hash=False)
    """The initial and the trailing metadata. Names that end with `-bin` have bytes."""
    seconds: float = 0.0
    """How long the attempt took."""
    error: CallError | None = None
    """Why the attempt failed; None if it succeeded."""


OnAnswer = Callable[[Answer], None]
