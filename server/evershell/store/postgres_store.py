"""The Store of the core, on PostgreSQL."""

import asyncio

from evershell.store.audit import AuditLog
from evershell.store.cancel_tasks import CancelTasks
from evershell.store.cancellations import Cancellations
from evershell.store.deletions import Deletions
from evershell.store.due import DueQueries
from evershell.store.event_log import EventLog
from evershell.store.events import Events
from evershell.store.fleet_queries import FleetQueries
from evershell.store.holds import Holds
from evershell.store.idempotency_keys import IdempotencyKeys
from evershell.store.leases import Leases
from evershell.store.old_tasks import OldTasks
from evershell.store.task_lists import TaskLists
from evershell.store.transitions import Transitions
from evershell.store.workspaces import Workspaces


class PostgresStore(
    Workspaces,
    TaskLists,
    Events,
    EventLog,
    Transitions,
    Leases,
    Cancellations,
    CancelTasks,
    IdempotencyKeys,
    Holds,
    AuditLog,
    FleetQueries,
    DueQueries,
    Deletions,
    OldTasks,
):
    """Implements core.ports.Store. No two parts define the same method."""

    async def drained(self) -> None:
        """Waits for shared statements in the background, even if their callers were cancelled."""
        await asyncio.gather(self._cancellation_group.drained(), self._lease_group.drained())
