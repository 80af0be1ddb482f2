"""Renews the leases of agents."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from evershell.core.change import Locked
from evershell.core.ports import RENEW_BELOW_SHARE, Leased
from evershell.store.batch import Batch
from evershell.store.part import Part
from evershell.store.pool import fetch_all
from evershell.store.rows import (
    task_of,
    workspace_of,
)
from evershell.store.statements import statements

_MAX_LEASES = 64
# How long a heartbeat waits for other heartbeats to share a statement with. A heartbeat costs less
# CPU with a wait of 0.1 s than with 0.02 s (docs/decisions/0015-heartbeats-and-scheduled-scans.md).
GATHER_SECONDS = 0.1
SQL = statements("leases")

# A workspace id, an epoch, and the length of a lease in seconds.
_LeaseRequest = tuple[str, int, float]


class Leases(Part):
    """Implements core.ports.Transitions.renew_lease."""

    async def renew_lease(
        self, workspace_id: str, epoch: int, lease_seconds: float
    ) -> Leased | None:
        return await self._lease_group((workspace_id, epoch, lease_seconds))

    @cached_property
    def _lease_group(self) -> Batch[_LeaseRequest, Leased | None]:
        return Batch(self._renew_leases, at_most=_MAX_LEASES, gather_seconds=GATHER_SECONDS)

    async def _renew_leases(self, requests: Sequence[_LeaseRequest]) -> Sequence[Leased | None]:
        ids, epochs, lease_seconds = (list(column) for column in zip(*requests, strict=True))
        rows = await fetch_all(
            self._pool,
            SQL.renew_leases,
            ids=ids,
            epochs=epochs,
            lease_seconds=lease_seconds,
            below_share=RENEW_BELOW_SHARE,
            now=self._clock(),
        )
        return [_leased(row) for row in rows]


def _leased(row: Any) -> Leased | None:
    if row.id is None:
        return None
    seconds = float("-inf") if row.seconds_left is None else row.seconds_left
    return Leased(Locked(workspace_of(row), task_of(row)), seconds)
