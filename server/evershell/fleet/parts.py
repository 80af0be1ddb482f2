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
    # The id of this run of the stack. The controller ends the pods of earlier runs.
    run_id: str
    # How long a workspace may be idle before it is suspended. None: it is never suspended.
    suspend_after: timedelta | None = None
    # The metrics of the backlog; None if they are not measured.
    backlog: Backlog | None = None
    # Whether the term still lasts.
    leads: Callable[[], bool] = lambda: True
