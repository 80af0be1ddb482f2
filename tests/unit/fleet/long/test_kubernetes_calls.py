"""How many calls the controller makes to a real API server: counts, which need no quiet machine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import httpx2
import pytest

from evershell.core.workspace import WorkspaceStatus
from evershell.fleet import due
from evershell.fleet.kubernetes.kubernetes_pods import KubernetesPods
from tests.contracts.kubernetes_case import (
    END_SECONDS,
    START_SECONDS,
    TEMPLATE,
    KubernetesCase,
)
from tests.support.fleet import FakePods, Fleet
from tests.support.small_agent import spec_for
from tests.support.waiting import eventually_async

_WORKSPACES = 8
_SWEEPS = 5


class Counting(httpx2.AsyncHTTPTransport):
    """The connections of one controller, with its calls."""

    def __init__(self) -> None:
        super().__init__(verify=False)
        self.calls: list[str] = []
        self.watches = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if "watch" in request.url.params:
            self.watches += 1
        else:
            self.calls.append(f"{request.method} {request.url.path}")
        return await super().handle_async_request(request)


@asynccontextmanager
async def counted(case: KubernetesCase) -> AsyncIterator[tuple[Fleet, Counting]]:
    """A controller whose calls are counted, once its watches have begun."""
    line = Counting()
    async with KubernetesPods.open(
        case.api.namespace,
        TEMPLATE,
        spec_for,
        start_seconds=START_SECONDS,
        end_seconds=END_SECONDS,
        transport=line,
    ) as pods:
        await eventually_async(lambda: line.watches == 2)
        yield Fleet(pods=cast(FakePods, pods)), line


async def test_at_rest_the_number_of_workspaces_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each sweep looks at every workspace, and the watches alone say that all is well."""
    monkeypatch.setattr(due, "SWEEP_SECONDS", due.SCAN_SECONDS / 2)
    async with KubernetesCase.open() as case, counted(case) as (fleet, line):
        for _ in range(_WORKSPACES):
            await case.start(await fleet.add(WorkspaceStatus.IDLE, pod=False))
        sweeps: list[object] = []
        read = fleet.world.store.list_wanted_pods

        async def list_wanted_pods(after_id: str, limit: int) -> object:
            sweeps.append(found := await read(after_id, limit))
            return found

        monkeypatch.setattr(fleet.world.store, "list_wanted_pods", list_wanted_pods)
        async with fleet.running():
            await eventually_async(lambda: sweeps)
            line.calls.clear()
            for _ in range(_SWEEPS):
                await fleet.next_scan()
            assert len(sweeps) > _SWEEPS
            assert [len(cast(list[object], page)) for page in sweeps] == [_WORKSPACES] * len(sweeps)
        assert line.calls == []
        assert line.watches <= 4, "a watch lasts a minute"


async def test_a_start_takes_five_calls() -> None:
    """It ends what may run, records the start, and creates the claim, the pod and its secret."""
    async with KubernetesCase.open() as case, counted(case) as (fleet, line):
        async with fleet.running():
            line.calls.clear()
            for _ in range(_WORKSPACES):
                await fleet.add(WorkspaceStatus.PROVISIONING, run_id=None, pod=False)
            await fleet.next_scan()
            await eventually_async(lambda: len(case.node.running) == _WORKSPACES)
            await eventually_async(lambda: len(line.calls) >= 5 * _WORKSPACES)
        methods = sorted(call.partition(" ")[0] for call in line.calls)
        assert methods == sorted(["DELETE", "PATCH", "POST", "POST", "POST"] * _WORKSPACES)
