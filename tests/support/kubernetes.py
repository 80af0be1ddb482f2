"""A namespace in a cluster without nodes. The test plays the scheduler and the kubelet.

The tests only need a KUBECONFIG whose user may do everything. They are skipped on a cluster with
nodes, because its scheduler and kubelets would compete with the test.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import pytest

from evershell.fleet.kubernetes.api import Api, ApiError, UnreachableError, connect
from evershell.fleet.kubernetes.objects import CONTAINER, MANAGED_BY, Object

LIMIT_SECONDS = 10.0
_POLL_SECONDS = 0.02


def require_cluster() -> None:
    """Skips the test if there is no cluster."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set: no cluster")


@asynccontextmanager
async def new_namespace() -> AsyncIterator[Api]:
    """Creates a namespace in which pods can be created. Deletes the namespace after the block."""
    require_cluster()
    async with connect("default", MANAGED_BY) as cluster:
        nodes = await cluster._call("GET", "api/v1/nodes", LIMIT_SECONDS)
        if nodes["items"]:
            pytest.skip("the cluster has nodes, and this test plays the only one")
        name = f"test-{os.getpid()}-{time.time_ns()}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await cluster._call("POST", "api/v1/namespaces", LIMIT_SECONDS, body=body)
        try:
            async with connect(name, MANAGED_BY) as api:
                await _create_service_account(api)
                yield api
        finally:
            await cluster._call("DELETE", f"api/v1/namespaces/{name}", LIMIT_SECONDS)


async def _create_service_account(api: Api) -> None:
    """Creates the default service account. In a complete cluster, a controller does this."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    with suppress(ApiError):
        await api.create("serviceaccounts", account, LIMIT_SECONDS)


class Node:
    """Plays the scheduler and the kubelet: runs every pod, and ends each pod that is deleted.

    The agent of each pod starts a tool and prints a line.
    """

    last_line = "last line"

    def __init__(self, api: Api) -> None:
        self._api = api
        # If true, the node does nothing.
        self.is_silent = False
        # If false, the node starts no pods, but still ends them.
        self.starts_pods = True
        # The names of pods whose agent ignores SIGTERM.
        self.frozen: set[str] = set()
        # The names of pods whose container runs.
        self.running: set[str] = set()
        # The names of pods that ended at SIGTERM.
        self.asked_to_end: set[str] = set()
        # When the node kills each pod, by the name of the pod.
        self._kill_at: dict[str, float] = {}

    async def run(self) -> None:
        """Plays the scheduler and the kubelet until this call is cancelled."""
        while True:
            with suppress(ApiError, UnreachableError):
                pods, _ = await self._api.list("pods", LIMIT_SECONDS)
                for pod in pods if not self.is_silent else ():
                    await self._act(pod)
            await asyncio.sleep(_POLL_SECONDS)

    async def _act(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        if "deletionTimestamp" in pod["metadata"]:
            await self._end(pod)
        elif "nodeName" not in pod["spec"] and self.starts_pods:
            await self.bind(name)
            await self.report_running(name)

    async def _end(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        grace = pod["metadata"]["deletionGracePeriodSeconds"]
        kill_at = self._kill_at.setdefault(name, time.monotonic() + grace)
        if name in self.frozen and time.monotonic() < kill_at:
            return
        if name in self.running:
            if name not in self.frozen and grace > 1:
                self.asked_to_end.add(name)
            await self.report_end(name, "Completed", 0)
        await self._api.delete("pods", name, 0, LIMIT_SECONDS)

    async def bind(self, name: str) -> None:
        """Assigns a pod to the node, as the scheduler does."""
        target = {"apiVersion": "v1", "kind": "Node", "name": "node-1"}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}}
        await self._api.create(f"pods/{name}/binding", {**binding, "target": target}, LIMIT_SECONDS)

    async def report(self, name: str, status: Object) -> None:
        """Sets the status of a pod."""
        await self._api.patch("pods", f"{name}/status", {"status": status}, LIMIT_SECONDS)

    async def report_running(self, name: str) -> None:
        """Reports that the container of a pod runs."""
        self.running.add(name)
        state = {"running": {"startedAt": _now()}}
        await self.report(name, {"phase": "Running", "podIP": "10.0.0.1", **_container(state)})

    async def report_waiting(self, name: str, reason: str, message: str) -> None:
        """Reports why the container of a pod does not start."""
        state = {"waiting": {"reason": reason, "message": message}}
        await self.report(name, {"phase": "Pending", **_container(state)})

    async def report_end(self, name: str, reason: str, exit_code: int) -> None:
        """Reports that the container of a pod has ended."""
        self.running.discard(name)
        terminated = {
            "exitCode": exit_code,
            "reason": reason,
            "message": f"first line\n{self.last_line}\n",
        }
        phase = "Succeeded" if exit_code == 0 else "Failed"
        await self.report(name, {"phase": phase, **_container({"terminated": terminated})})


def _container(state: Object) -> Object:
    status = {
        "name": CONTAINER,
        "image": "image",
        "imageID": "",
        "ready": "running" in state,
        "restartCount": 0,
        # A merge patch replaces a list as a whole, so this also removes the old state.
        "state": state,
    }
    return {"containerStatuses": [status]}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
