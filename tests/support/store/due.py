"""Reads the due work from a store under test."""

from collections.abc import Sequence
from datetime import datetime

from evershell.core.bounds import Bounds
from evershell.core.due import Due, Kind, Place
from evershell.core.ports import Store
from tests.support.store.examples import NOW

BOUNDS = Bounds(model_timeout_seconds=5.0, tool_timeout_seconds=10.0, lease_seconds=30.0)
UNSETTLED = (Kind.START, Kind.STOP, Kind.SUSPENSION, Kind.REMOVAL)


async def due(
    store: Store,
    *kinds: Kind,
    now: datetime = NOW,
    limit: int = 9,
    after: Place | None = None,
) -> Sequence[Due]:
    """Returns the due rows of these kinds."""
    work = await store.due(now, dict.fromkeys(kinds, after), limit, BOUNDS)
    return [each for kind in kinds for each in work.rows.get(kind, ())]


async def due_ids(store: Store, *kinds: Kind, now: datetime = NOW, limit: int = 9) -> list[str]:
    """Returns the ids of the workspaces in the due rows of these kinds."""
    return [each.workspace.id for each in await due(store, *kinds, now=now, limit=limit)]
