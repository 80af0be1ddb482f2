"""The task that an agent works on."""

from dataclasses import dataclass, field

from evershell.agents.cancellation import CancelFlag
from evershell.core.task import Phase


@dataclass(slots=True, kw_only=True)
class ActiveTask:
    """The task that the agent works on."""

    id: str
    description: str
    max_iterations: int
    cancel: CancelFlag = field(default_factory=CancelFlag)
    # The number of iterations that have ended.
    iterations: int = 0
    phase: Phase = Phase.NONE
    # Whether its end has been proposed to the control plane.
    is_ending: bool = False
