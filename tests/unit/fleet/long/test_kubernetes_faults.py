"""Pods on a real API server during faults: what the controller knows, and what operators read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx2
import pytest

from evershell.core.workspace import Workspace
from evershell.fleet.kubernetes.api import ApiError
from evershell.fleet.kubernetes.kubernetes_pods import KubernetesPods
from evershell.fleet.kubernetes.objects import claim_name, pod_name
from tests.contracts.kubernetes_case import TEMPLATE, KubernetesCase, new_port
from tests.support import world
from tests.support.kubernetes import LIMIT_SECONDS
from tests.support.small_agent import spec_for
from tests.support.waiting import eventually_async


@pytest.fixture
async def case() -> AsyncIterator[KubernetesCase]:
    async with KubernetesCase.open() as case:
        yield case


@pytest.fixture
def workspace(case: KubernetesCase) -> Workspace:
    return world.workspace(epoch=3, run_id=case.pods.run_id)


def name_of(workspace: Workspace) -> str:
    return pod_name(workspace.id, workspace.epoch)


class Line(httpx2.AsyncHTTPTransport):
    """The connections of one controller, which the test can cut."""

    def __init__(self) -> None:
        super().__init__(verify=False)
        self.is_cut = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.is_cut:
            raise httpx2.ConnectError("cut")
        return await super().handle_async_request(request)

    async def cut(self) -> None:
        """Closes all connections, including watches, and refuses new ones."""
        self.is_cut = True
        await self._pool.aclose()


@asynccontextmanager
async def cuttable(case: KubernetesCase) -> AsyncIterator[tuple[KubernetesPods, Line]]:
    """Another controller's KubernetesPods, whose connections the test can cut."""
    line = Line()
    async with KubernetesPods.open(
        case.api.namespace, TEMPLATE, spec_for, start_seconds=1, end_seconds=1, transport=line
    ) as pods:
        await pods.sync()
        yield pods, line


async def test_what_happens_during_an_outage_is_known_after_it(
    case: KubernetesCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    async with cuttable(case) as (pods, line):
        exiting = asyncio.create_task(pods.wait_exit(workspace))
        await line.cut()
        await case.kill(workspace)
        # The controller cannot see the end of the agent, so it must rely on the lease.
        assert pods.is_alive(workspace)
        with pytest.raises(OSError, match="did not answer"):
            await pods.start(world.workspace(epoch=1, run_id=pods.run_id))
        assert await pods.end(workspace, 0) is False
        line.is_cut = False
        await asyncio.wait_for(exiting, LIMIT_SECONDS)
        assert not pods.is_alive(workspace)


async def test_a_term_that_begins_during_an_outage_starts_no_second_pod(
    case: KubernetesCase, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evershell.fleet.kubernetes.kubernetes_pods._SYNC_SECONDS", 0.1)
    unknown = world.workspace(epoch=1, run_id=case.pods.run_id)
    async with cuttable(case) as (pods, line):
        await line.cut()
        await case.start(workspace)
        await pods.sync()
        for each in (workspace, unknown):
            assert pods.was_started(each)
            assert pods.is_alive(each)
        exiting = asyncio.create_task(pods.wait_exit(unknown))
        line.is_cut = False
        await asyncio.wait_for(exiting, LIMIT_SECONDS)
        assert not pods.was_started(unknown)
        assert pods.is_alive(workspace)


async def test_concurrent_starts_make_one_pod(case: KubernetesCase, workspace: Workspace) -> None:
    async with new_port(case.api) as other:
        await other.sync()
        await asyncio.gather(*(pods.start(workspace) for pods in (case.pods, other, case.pods)))
    found, _ = await case.api.list("pods", LIMIT_SECONDS)
    assert [each["metadata"]["name"] for each in found] == [name_of(workspace)]
    secret = await case.api.get("secrets", name_of(workspace), LIMIT_SECONDS)
    (owner,) = secret["metadata"]["ownerReferences"]
    assert owner["uid"] == found[0]["metadata"]["uid"]


async def test_a_start_that_was_interrupted_counts_as_started(
    case: KubernetesCase, workspace: Workspace
) -> None:
    """The controller died after it had recorded the start."""
    await case.pods._record_start(workspace)
    async with new_port(case.api) as next_controller:
        await next_controller.sync()
        assert next_controller.was_started(workspace)
        assert not next_controller.is_alive(workspace)
        assert next_controller.explain(workspace) == "its pod is gone"


async def test_a_quota_that_is_exhausted(case: KubernetesCase, workspace: Workspace) -> None:
    async with case.failing_starts():
        with pytest.raises(OSError, match=r"the namespace's quota is exhausted: .*limited: pods=0"):
            await case.pods.start(workspace)


async def test_an_eviction_through_the_api_ends_the_pod_with_its_reason(
    case: KubernetesCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    case.freeze(workspace)
    eviction = {
        "apiVersion": "policy/v1beta1",
        "kind": "Eviction",
        "metadata": {"name": name_of(workspace)},
    }
    await case.api.create(f"pods/{name_of(workspace)}/eviction", eviction, LIMIT_SECONDS)
    await asyncio.wait_for(case.pods.wait_exit(workspace), LIMIT_SECONDS)
    assert "deleted from outside" in case.pods.explain(workspace)
    # The eviction gives the pod a longer grace period, which this call cuts short.
    assert await case.pods.end(workspace, 0) is True
    assert not case.runs(workspace.id)


async def test_an_end_does_not_wait_for_volumes(case: KubernetesCase, workspace: Workspace) -> None:
    """After a kubelet has reported the end of the containers, it must still release the volumes."""
    await case.start(workspace)
    case.node.is_silent = True
    ending = asyncio.create_task(case.pods.end(workspace, 0))
    await case.observed(name_of(workspace), lambda pod: "deletionTimestamp" in pod["metadata"])
    assert not ending.done()
    await case.node.report_end(name_of(workspace), "Error", 137)
    assert await ending is True
    assert await case.api.get("pods", name_of(workspace), LIMIT_SECONDS)


async def test_a_pod_that_was_removed_by_force_may_still_run(
    case: KubernetesCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    case.node.is_silent = True
    await case.api.delete("pods", name_of(workspace), 0, LIMIT_SECONDS)
    await asyncio.wait_for(case.pods.wait_exit(workspace), LIMIT_SECONDS)
    # The API server first marks the pod as deleted, and removes it a little later.
    await eventually_async(lambda: case.pods.explain(workspace) == "its pod is gone")
    assert await case.pods.end(workspace, 0) is False


async def test_an_end_never_removes_a_pod_without_its_kubelet(
    case: KubernetesCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    pods = await case.lose_track(workspace)
    await pods.end(workspace, 0)
    found = await case.api.get("pods", name_of(workspace), LIMIT_SECONDS)
    assert found["metadata"]["deletionGracePeriodSeconds"] == 1


async def test_the_claim_outlives_the_pods_and_the_controllers(
    case: KubernetesCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    claim = await case.api.get("persistentvolumeclaims", claim_name(workspace.id), LIMIT_SECONDS)
    assert await case.pods.end(workspace, 0) is True
    following = replace(workspace, epoch=workspace.epoch + 1)
    await case.start(following)
    same = await case.api.get("persistentvolumeclaims", claim_name(workspace.id), LIMIT_SECONDS)
    assert same["metadata"]["uid"] == claim["metadata"]["uid"]
    with pytest.raises(ApiError) as raised:
        await case.api.get("pods", name_of(workspace), LIMIT_SECONDS)
    assert raised.value.status == 404
