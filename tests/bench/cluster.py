"""The programs of a measured cluster: database, worker, controller, and simulated nodes."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
import grpc.aio
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc
from tenacity import AsyncRetrying, retry_if_exception, wait_random

from evershell.auth.api_keys import fingerprint, new_secret
from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key
from evershell.core import ids
from evershell.core.caller import ApiKey, KeyTemplate
from evershell.fleet.kubernetes.api import Api
from evershell.store.keys import PostgresKeys
from evershell.store.migrate import migrate
from evershell.store.pool import open_pool
from evershell.store.service_clock import machine_clock
from tests.bench import processes
from tests.bench.idle_fleet import database
from tests.bench.simulated_nodes import SimulatedNodes
from tests.support.kubernetes import new_namespace

_BURST_SECONDS = 120.0
_ORG = "org_bench"
# An agent that sends no heartbeat keeps its lease for the whole run.
_LEASE_SECONDS = 36_000


@dataclass
class Cluster:
    """The programs that are measured."""

    controller_pid: int
    nodes: SimulatedNodes
    public: "workspace_service_pb2_grpc.WorkspaceServiceAsyncStub"
    metadata: tuple[tuple[str, str], ...]
    audit: "AuditLog"

    async def create(self, count: int) -> list[float]:
        """Creates workspaces at once. Returns the time to ready of each, in seconds."""

        async def one() -> float:
            began = time.monotonic()
            return await self.nodes.registered(await self._create_one()) - began

        async with asyncio.timeout(_BURST_SECONDS):
            return await asyncio.gather(*(one() for _ in range(count)))

    async def _create_one(self) -> str:
        """Creates a workspace and returns its id. Repeats the call while it is `unavailable`.

        A worker has few connections to the database, so some calls of a burst may get none in time.
        """
        again = AsyncRetrying(
            retry=retry_if_exception(_is_unavailable), wait=wait_random(0.1, 0.5), reraise=True
        )
        metadata = (*self.metadata, ("idempotency-key", uuid4().hex))

        async def attempt() -> str:
            request = workspace_service_pb2.CreateWorkspaceRequest(name="bench")
            reply = await self.public.CreateWorkspace(
                request, metadata=metadata, timeout=_BURST_SECONDS
            )
            return str(reply.id)

        return await again(attempt)


def _is_unavailable(error: BaseException) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE


class AuditLog:
    """The audit log of the API server."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def calls_of_controller(self) -> int:
        """The calls that the controller has made since the last time."""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            lines = log.readlines()
            self._offset = log.tell()
        agents = (json.loads(line).get("userAgent", "") for line in lines)
        return sum(agent.startswith("evershell/") for agent in agents)


@asynccontextmanager
async def running(folder: Path, audit: AuditLog) -> AsyncIterator[Cluster]:
    """Runs the programs, with the pods in a namespace of the cluster that KUBECONFIG names."""
    key, port = new_key(), processes.free_port()
    (folder / "control-plane.jwk").write_text(key)
    (folder / "jwks.json").write_text('{"keys": []}')
    with database(folder) as (url, _):
        await asyncio.to_thread(migrate, url)
        token = await _api_key(url)
        async with new_namespace() as api:
            environment = {
                "STATE_DIR": str(folder),
                "DATABASE_URL": url,
                "JWKS": str(folder / "jwks.json"),
                "RATE_LIMIT": "off",
                "LEASE_SECONDS": str(_LEASE_SECONDS),
                "POD_BACKEND": "kubernetes",
                "POD_IMAGE": "example.com/agent:1",
                "POD_NAMESPACE": api.namespace,
                "RUNTIME_SERVICE": f"127.0.0.1:{port}",
                "METRICS_PORT": "0",
            }
            log, program = folder / "log", [sys.executable, "-m", "evershell.commands"]
            serve = [*program, "serve", "--port", str(port)]
            with (
                processes.started(serve, log, environment) as worker,
                processes.started([*program, "fleet"], log, environment) as controller,
            ):
                await asyncio.to_thread(processes.await_listening, worker, port, log)
                async with (
                    grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
                    _nodes(api, channel, PodTokens(key)) as nodes,
                ):
                    stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
                    metadata = (("authorization", f"Bearer {token}"),)
                    yield Cluster(controller.pid, nodes, stub, metadata, audit)


async def _api_key(url: str) -> str:
    secret = new_secret()
    async with open_pool(url, max_size=2) as pool:
        keys = PostgresKeys(pool)
        await keys.ensure_org(_ORG, "bench")
        key = ApiKey(
            id=ids.new_key_id(),
            org_id=_ORG,
            name="bench",
            template=KeyTemplate.FULL_ACCESS,
            created_at=machine_clock(),
        )
        await keys.create_key(key, fingerprint(secret))
    return secret


@asynccontextmanager
async def _nodes(
    api: Api, channel: grpc.aio.Channel, tokens: PodTokens
) -> AsyncIterator[SimulatedNodes]:
    nodes = SimulatedNodes(api, channel, tokens)
    playing = asyncio.create_task(nodes.run())
    try:
        yield nodes
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
