"""The server of a peer of the bench: CancelTask with a2a-sdk and its database store.

This peer promises less than this service. The SDK's request handler signals the agent first and
stores the status afterwards: it calls the executor's `cancel`, and then saves the status that
`cancel` has published. If the server ends in between, the agent has ended a task whose status in
the database is still `working`. If the agent cannot be reached, the task is stored as failed. There
is no log of events, and no lock orders two concurrent cancellations. As in this service, the answer
is sent after the commit.

The peer is built as the SDK's documentation recommends: the SDK's JSON-RPC routes in a Starlette
application, with Starlette's middleware for authentication, and an executor for the agent.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from a2a.helpers import new_task
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import DatabaseTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, TaskState
from a2a.utils.constants import PROTOCOL_VERSION_CURRENT, TransportProtocol
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    SimpleUser,
)
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection

from bench.peers.server import GrpcAgentClient, PeerSettings, create_engine, serve

_RPC_PATH = "/rpc"
_CARD = AgentCard(
    name="peer",
    description="Runs tasks.",
    version="1.0.0",
    capabilities=AgentCapabilities(streaming=False),
    default_input_modes=["text/plain"],
    default_output_modes=["text/plain"],
    supported_interfaces=[
        AgentInterface(
            protocol_binding=TransportProtocol.JSONRPC,
            protocol_version=PROTOCOL_VERSION_CURRENT,
            url=_RPC_PATH,
        )
    ],
    skills=[AgentSkill(id="tasks", name="Tasks", description="Runs a task.", tags=["tasks"])],
)


class ApiKeys(AuthenticationBackend):
    """Authenticates the API key whose SHA-256 is in the settings."""

    def __init__(self, sha256: str) -> None:
        self._sha256 = sha256

    async def authenticate(self, connection: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        scheme, _, key = connection.headers.get("Authorization", "").partition(" ")
        sha256 = hashlib.sha256(key.encode()).hexdigest()
        if scheme != "Bearer" or not secrets.compare_digest(sha256, self._sha256):
            raise AuthenticationError("the API key is missing or not valid")
        return AuthCredentials(["workspace:write"]), SimpleUser("key_peer")


class Executor(AgentExecutor):
    """Starts tasks without a call to the agent, but signals the agent when a task is cancelled."""

    def __init__(self, agent: GrpcAgentClient) -> None:
        self._agent = agent

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Publishes a task with the status `working`. The task runs until it is cancelled."""
        task = new_task(
            context.task_id,
            context.context_id,
            TaskState.TASK_STATE_WORKING,
            history=[context.message],
        )
        task.status.timestamp.GetCurrentTime()
        await event_queue.enqueue_event(task)
        await asyncio.get_running_loop().create_future()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Signals the agent, and publishes the status, which the SDK then stores."""
        await self._agent.cancel(context.task_id)
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


def _create_app(settings: PeerSettings) -> Starlette:
    engine = create_engine(settings)
    agent = GrpcAgentClient(settings.agent_grpc_address)
    store = DatabaseTaskStore(engine)
    handler = DefaultRequestHandler(Executor(agent), store, _CARD)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await agent.open()
        await store.initialize()
        yield
        await handler.aclose()
        await agent.close()
        await engine.dispose()

    return Starlette(
        routes=create_jsonrpc_routes(handler, _RPC_PATH),
        middleware=[Middleware(AuthenticationMiddleware, backend=ApiKeys(settings.api_key_sha256))],
        lifespan=lifespan,
    )


if __name__ == "__main__":
    serve(_create_app(PeerSettings()))
