"""KubernetesPods on a real API server, in a cluster without nodes.

The test acts as the scheduler and the kubelet. The cluster need not be complete: for controllers
that it may lack, the test does the work too.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress

from evershell.core.workspace import Workspace
from evershell.fleet.kubernetes.api import Api, ApiError
from evershell.fleet.kubernetes.kubernetes_pods import KubernetesPods
from evershell.fleet.kubernetes.objects import (
    Object,
    PodTemplate,
    claim_name,
    key_of,
    pod_name,
)
from evershell.fleet.pods import Pods
from tests.support.kubernetes import LIMIT_SECONDS, Node, new_namespace
from tests.support.small_agent import spec_for
from tests.support.waiting import eventually_async

TEMPLATE = PodTemplate(
    image="example.com/agent:1",
    command=["agent"],
    resources={"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"memory": "64Mi"}},
    volume={"resources": {"requests": {"storage": "1Mi"}}},
)
# Much longer than the test needs to act as the node, even on a busy machine.
START_SECONDS = END_SECONDS = 15.0
# How long to wait for the end of a pod whose node does not answer.
_SILENT_SECONDS = 1.0


class KubernetesCase:
    """The case of KubernetesPods.

    `pods` is under test. `other_controller` opens further KubernetesPods for the same objects.
    """

    last_line = Node.last_line

    def __init__(self, api: Api, pods: KubernetesPods, stack: AsyncExitStack) -> None:
        self.api = api
        self.pods = pods
        self.node = Node(api)
        self._stack = stack
        self._ports = [pods]

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["KubernetesCase"]:
        async with new_namespace() as api, AsyncExitStack() as stack:
            case = cls(api, await stack.enter_async_context(new_port(api)), stack)
            await case.pods.sync()
            playing = asyncio.create_task(case.node.run())
            try:
                yield case
            finally:
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)

    async def other_controller(self) -> Pods:
        other = await self._stack.enter_async_context(new_port(self.api))
        await other.sync()
        self._ports.append(other)
        return other

    async def start(self, workspace: Workspace) -> None:
        await self.pods.start(workspace)
        name = pod_name(workspace.id, workspace.epoch)
        await eventually_async(lambda: name in self.node.running)
        await self.observed(name, lambda pod: "containerStatuses" in pod["status"])

    async def kill(self, workspace: Workspace) -> None:
        name = pod_name(workspace.id, workspace.epoch)
        await self.node.report_end(name, "Error", 137)
        await self.observed(name, lambda pod: pod["status"]["phase"] == "Failed")

    def freeze(self, workspace: Workspace) -> None:
        self.node.frozen.add(pod_name(workspace.id, workspace.epoch))

    def was_asked_to_end(self, workspace: Workspace) -> bool:
        return pod_name(workspace.id, workspace.epoch) in self.node.asked_to_end

    def runs(self, workspace_id: str) -> bool:
        prefix = pod_name(workspace_id, 0).removesuffix("0")
        return any(name.startswith(prefix) for name in self.node.running)

    async def lose_track(self, workspace: Workspace) -> Pods:
        """Makes the node silent. The returned Pods wait only briefly for the node."""
        self.node.is_silent = True
        impatient = await self._stack.enter_async_context(
            new_port(self.api, end_seconds=_SILENT_SECONDS)
        )
        await impatient.sync()
        return impatient

    async def remove_files(self, workspace: Workspace) -> None:
        name = claim_name(workspace.id)
        await self.api.delete("persistentvolumeclaims", name, 0, LIMIT_SECONDS)
        await self._free(name)
        await eventually_async(lambda: not self.pods.has_files(workspace.id))

    async def _free(self, claim: str) -> None:
        """Removes the claim's finalizers, as a complete cluster does once no pod uses the claim."""
        free = {"metadata": {"finalizers": None}}
        with suppress(ApiError):
            await self.api.patch("persistentvolumeclaims", claim, free, LIMIT_SECONDS)

    async def remove(self, pods: Pods, workspace_id: str) -> None:
        while not await pods.remove(workspace_id):
            await self._free(claim_name(workspace_id))
        await eventually_async(lambda: not pods.has_files(workspace_id))

    async def leftovers(self, workspace_id: str) -> list[str]:
        # Leaves out secrets: a complete cluster removes them with the pods that own them.
        kinds = ("pods", "persistentvolumeclaims")
        found = [each for kind in kinds for each in (await self.api.list(kind, LIMIT_SECONDS))[0]]
        return [each["metadata"]["name"] for each in found if key_of(each)[0] == workspace_id]

    @asynccontextmanager
    async def failing_starts(self) -> AsyncIterator[None]:
        await self.limit_pods(0)
        try:
            yield
        finally:
            await self.api.delete("resourcequotas", "limit", 0, LIMIT_SECONDS)
            await eventually_async(self._is_unlimited)

    async def limit_pods(self, count: int) -> None:
        """Sets a quota for the number of pods."""
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "limit"}}
        hard = {"hard": {"pods": str(count)}}
        await self.api.create("resourcequotas", {**quota, "spec": hard}, LIMIT_SECONDS)
        # In a complete cluster, a controller sets this status.
        status = {"status": {**hard, "used": {"pods": "0"}}}
        await self.api.patch("resourcequotas", "limit/status", status, LIMIT_SECONDS)

    async def observed(self, name: str, condition: Callable[[Object], bool]) -> None:
        """Waits until every controller has seen that the pod meets `condition`."""

        def is_seen() -> bool:
            found = [port._pods.get(name) for port in self._ports]
            return all(pod is not None and condition(pod) for pod in found)

        await eventually_async(is_seen)

    async def _is_unlimited(self) -> bool:
        # Tries to create a pod, because the API server may still have a deleted quota in its cache.
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "probe"},
            "spec": {
                "automountServiceAccountToken": False,
                "containers": [{"name": "probe", "image": "probe"}],
            },
        }
        try:
            await self.api._call(
                "POST",
                f"api/v1/namespaces/{self.api.namespace}/pods",
                LIMIT_SECONDS,
                {"dryRun": "All"},
                body,
            )
        except ApiError:
            return False
        return True


def new_port(
    api: Api, end_seconds: float = END_SECONDS
) -> AbstractAsyncContextManager[KubernetesPods]:
    """Opens another controller's KubernetesPods for the pods of this namespace."""
    return KubernetesPods.open(
        api.namespace,
        TEMPLATE,
        spec_for,
        start_seconds=START_SECONDS,
        end_seconds=end_seconds,
    )
