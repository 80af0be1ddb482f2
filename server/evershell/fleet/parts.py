"""What a fleet controller works with during one term of leadership."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from evershell.core.bounds import Bounds
from evershell.core.ports import Agents, Clock, Store
from evershell.fleet.pods import Pods
from evershell.telemetry.backlog import Backlog


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The ports of the controller, and its settings."""

    store: Store
    pods: Pods
    agents: Agents
    clock: Clock
    bounds: Bounds
    # The id of this run of the stack. Pods of other runs have ended.
    run_id: str
    # How long workspaces are idle before they are suspended; None means for ever.
    suspend_after: timedelta | None = None
    # Without it, nothing is measured.
    backlog: Backlog | None = None
    # Whether the term still lasts.
    leads: Callable[[], bool] = lambda: True
