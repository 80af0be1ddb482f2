"""Reads from the database what the metrics show about holds, workspaces and ended tasks."""

from evershell.core.ports import Store
from evershell.telemetry.backlog import Backlog


async def count(store: Store, backlog: Backlog) -> None:
    """Reads the numbers once. Raises UnavailableError.

    The database reads the rows of all workspaces to count them.
    """
    backlog.set_hold_count(await store.count_holds())
    backlog.set_workspace_counts(await store.count_workspaces())
    backlog.set_oldest_end(await store.oldest_end())
