"""An agent for the tests of AgentClient: a gRPC server in the process of the test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
from evershell.agent.v1.agent_service_pb2 import (
    Acknowledgement,
    CurrentIteration,
    GetCurrentIterationRequest,
    Signal,
)
from evershell.agent.v1.agent_service_pb2_grpc import (
    AgentServiceServicer,
    add_AgentServiceServicer_to_server,
)

from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key
from evershell.core.errors import AgentUnreachableError
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.fleet.agent_client import AgentClient
from evershell.pod.tls import Options, TlsIdentity, listen
from tests.support.ports import free_ports
from tests.support.world import NOW, intent, locked_busy

Context = grpc.aio.ServicerContext[Any, Any]
# The clock stands still, so that every signal token belongs to the same minute.
TOKENS = PodTokens(new_key(), lambda: 1_000.0)
_TASK = locked_busy(cancel=intent(force_at=NOW + timedelta(seconds=7)), epoch=3).task
assert _TASK is not None
TASK: Task = _TASK


async def answer_at_once(number: int, context: Context) -> None:
    pass


class FakeAgent(AgentServiceServicer):
    """Records the signals. Awaits `before` before each acknowledgement."""

    def __init__(self) -> None:
        self.before: Callable[[int, Context], Awaitable[None]] = answer_at_once
        # The tasks that the agent knows; None for all.
        self.known: set[str] | None = None
        self.signals: list[Signal] = []
        # Returns the answers to a signal; None for one acknowledgement.
        self.answers: Callable[[Signal], Iterable[Acknowledgement]] | None = None
        # The answer to a read; None to behave like an agent of an earlier version.
        self.iteration: CurrentIteration | None = None
        self.reads = 0
        self.before_read: Callable[[int, Context], Awaitable[None]] = answer_at_once
        # The peer of each stream.
        self.peers: list[str] = []
        # The `authorization` metadata of each stream.
        self.opened: list[str] = []
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def listen(
        self, address: str = "", tls: TlsIdentity | None = None, options: Options = ()
    ) -> None:
        """Listens on the address, or on a port that stays free while the agent is down."""
        address = address or f"127.0.0.1:{free_ports(1)[0]}"
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *options])
        add_AgentServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{listen(self._server, address, tls)}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)

    async def GetCurrentIteration(
        self, request: GetCurrentIterationRequest, context: Context
    ) -> CurrentIteration:
        if self.iteration is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "an earlier version")
        self.reads += 1
        await self.before_read(self.reads, context)
        return self.iteration

    async def Signals(
        self, request_iterator: AsyncIterator[Signal], context: Context
    ) -> AsyncIterator[Acknowledgement]:
        metadata = dict(context.invocation_metadata() or ())
        self.opened.append(str(metadata["authorization"]))
        self.peers.append(context.peer())
        async for signal in request_iterator:
            self.signals.append(signal)
            await self.before(len(self.signals), context)
            task_id = signal.start_task.task_id or signal.cancel_task.task_id
            is_known = self.known is None or task_id in self.known
            if self.answers is None:
                yield Acknowledgement(id=signal.id, known=is_known)
            else:
                for answer in self.answers(signal):
                    yield answer


def workspace_at(address: str | None, workspace_id: str = "ws_1") -> Workspace:
    locked = locked_busy(cancel=intent(force_at=NOW), epoch=3, agent_address=address)
    return replace(locked.workspace, id=workspace_id)


async def cancel(client: AgentClient, address: str | None, task_id: str = TASK.id) -> bool:
    return await client.cancel_task(workspace_at(address), replace(TASK, id=task_id))


async def unreachable(client: AgentClient, address: str | None) -> None:
    """Cancels. The call must fail, long before the budget of a patient client is used up."""
    with pytest.raises(AgentUnreachableError):
        await asyncio.wait_for(cancel(client, address), 30)


async def never(number: int, context: Context) -> None:
    await asyncio.Event().wait()
