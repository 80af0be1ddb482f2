"""The Store of the core, in memory."""

from evershell.store.memory.audit import AuditLog
from evershell.store.memory.cancellations import Cancellations
from evershell.store.memory.fleet import Fleet
from evershell.store.memory.holds import Holds
from evershell.store.memory.transitions import Transitions
from evershell.store.memory.workspaces import Workspaces


class MemoryStore(Workspaces, Transitions, Cancellations, Holds, AuditLog, Fleet):
    """Implements core.ports.Store in memory."""
