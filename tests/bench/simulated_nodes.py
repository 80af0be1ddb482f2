"""Nodes for the bench: they run every pod of a namespace as soon as they see it."""

import asyncio
import time

import grpc.aio
from evershell.agent.v1.runtime_service_pb2 import RegisterRequest
from evershell.agent.v1.runtime_service_pb2_grpc import RuntimeServiceStub

from evershell.auth.pod_tokens import PodTokens
from evershell.fleet.kubernetes.api import Api, GoneError
from evershell.fleet.kubernetes.objects import EPOCH_LABEL, WORKSPACE_LABEL, Object
from tests.support.kubernetes import LIMIT_SECONDS, Node
from tests.support.runtime_tokens import runtime_token

# How many pods start at once, on all nodes together.
_AT_ONCE = 20
_REGISTER_SECONDS = 10.0


class SimulatedNodes:
    """Plays the scheduler, the kubelets, and the agents, which register and then do nothing."""

    def __init__(self, api: Api, channel: grpc.aio.Channel, tokens: PodTokens) -> None:
        """Agents call the worker of the channel."""
        # Distinguishes these calls from the controller's calls in the audit log.
        api._http.headers["user-agent"] = "simulated-nodes"
        self._api = api
        self._node = Node(api)
        self._workers = RuntimeServiceStub(channel)
        self._tokens = tokens
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._starts: dict[str, asyncio.Task[None]] = {}
        # When each agent has registered, by workspace id.
        self._registered: dict[str, asyncio.Future[float]] = {}

    async def registered(self, workspace_id: str) -> float:
        """Returns when the agent of the workspace registered, by the monotonic clock."""
        return await asyncio.shield(self._of(workspace_id))

    async def run(self) -> None:
        """Runs pods until it is cancelled."""
        while True:
            pods, version = await self._api.list("pods", LIMIT_SECONDS)
            for pod in pods:
                self._begin(pod)
            try:
                while True:
                    async for type_, pod in self._api.watch("pods", version):
                        version = int(pod["metadata"]["resourceVersion"])
                        if type_ == "ADDED":
                            self._begin(pod)
            except GoneError:
                continue

    def _begin(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        if name not in self._starts:
            self._starts[name] = asyncio.create_task(self._start(pod))

    async def _start(self, pod: Object) -> None:
        name, labels = pod["metadata"]["name"], pod["metadata"]["labels"]
        workspace_id, epoch = labels[WORKSPACE_LABEL], int(labels[EPOCH_LABEL])
        registered = self._of(workspace_id)
        try:
            async with self._slots:
                await self._node.bind(name)
                await self._node.report_running(name)
                token = runtime_token(self._tokens, workspace_id, epoch)
                await self._workers.Register(
                    RegisterRequest(address="192.0.2.9:9", pid=1),
                    metadata=(("authorization", f"Bearer {token}"),),
                    timeout=_REGISTER_SECONDS,
                )
        except Exception as error:
            registered.set_exception(error)
            raise
        registered.set_result(time.monotonic())

    def _of(self, workspace_id: str) -> "asyncio.Future[float]":
        return self._registered.setdefault(workspace_id, asyncio.get_running_loop().create_future())
