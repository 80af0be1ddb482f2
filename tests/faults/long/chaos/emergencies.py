"""Plays the emergencies of a plan: calls of CancelTasks and HoldOrg for the whole organization."""

import asyncio
from collections.abc import Sequence
from itertools import cycle

from tests.faults.long.chaos.load import Load
from tests.faults.long.chaos.plan import Emergency, Wire

_PAUSE_SECONDS = 0.15
# How long it may take until the organization is released, under faults.
_RELEASE_SECONDS = 60.0


class Emergencies:
    """At the end, the organization is not on hold."""

    def __init__(self, load: Load, token: str) -> None:
        """The token may hold the organization."""
        self._load = load
        self._token = token

    async def run(self, emergencies: Sequence[Emergency]) -> None:
        """Plays one after another. One that is late begins at once."""
        began = asyncio.get_running_loop().time()
        for each in emergencies:
            left_seconds = began + each.at_seconds - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, left_seconds))
            if each.hold_seconds is None:
                await self._load.call_for_org(each.wire, "CancelTasks", self._token, cancels=False)
                continue
            await self._load.call_for_org(each.wire, "HoldOrg", self._token, cancels=each.cancels)
            await asyncio.sleep(each.hold_seconds)
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._release(each.release_wire)

    async def _release(self, wire: Wire) -> None:
        wires = cycle([*(other for other in Wire if other is not wire), wire])
        while (await self._load.call_for_org(wire, "ReleaseOrg", self._token, cancels=False)).slug:
            wire = next(wires)
            await asyncio.sleep(_PAUSE_SECONDS)
