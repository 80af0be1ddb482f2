"""RuntimeService in this process: real messages, over a network that the state machine controls."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from evershell.agent.v1.runtime_service_pb2 import (
    CommitEventsRequest,
    CommitEventsResponse,
    Directive,
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterRequest,
    RegisterResponse,
)
from evershell.workspace.v1.task_pb2 import Task

from evershell.api import agent_codec
from evershell.core.errors import Failure, UnavailableError
from evershell.core.runtime import AgentIdentity, Runtime
from evershell.core.runtime import Directive as CoreDirective
from evershell.core.task import Phase, TaskEnded, TaskStatus
from tests.faults.invariants.record import Hop, Record
from tests.faults.invariants.spy_store import SpyStore
from tests.faults.invariants.trouble import Fault, Link

if TYPE_CHECKING:
    from tests.faults.invariants.agent import Agent

# The task id that an agent with the given fault sends in its heartbeats.
_NAMED: dict[Fault | None, str] = {
    Fault.FORGETS_ITS_TASK: "",
    Fault.NAMES_ANOTHER_TASK: "task_of_earlier",
}


class RuntimeStub:
    """The stub that one agent calls.

    It works like api/runtime_servicer.py, and records each reply.
    """

    def __init__(
        self,
        identity: AgentIdentity,
        agent: "Agent",
        runtime: Runtime,
        store: SpyStore,
        record: Record,
    ) -> None:
        self._identity = identity
        self._agent = agent
        self._runtime = runtime
        self._store = store
        self._record = record

    async def Register(self, request: RegisterRequest, **_: Any) -> RegisterResponse:
        directive = await self._call(
            "", lambda: self._runtime.register(self._identity, request.address)
        )
        return RegisterResponse(directive=directive)

    async def Heartbeat(self, request: HeartbeatRequest, **_: Any) -> HeartbeatResponse:
        phase = Phase(Task.Phase.Name(request.phase)) if request.phase else Phase.NONE
        named = _NAMED.get(self._agent.fault, request.task_id)
        directive = await self._call(
            request.task_id, lambda: self._runtime.heartbeat(self._identity, named, phase)
        )
        return HeartbeatResponse(directive=directive)

    async def CommitEvents(self, request: CommitEventsRequest, **_: Any) -> CommitEventsResponse:
        task_id, events = request.task_id, agent_codec.decode_commit(request)
        ending = next((event for event in events if isinstance(event, TaskEnded)), None)
        if self._agent.fault is Fault.BREAKS:
            raise OSError(28, "No space left on device")
        if self._agent.fault in (Fault.COMMITS_NOTHING, *_NAMED):
            await asyncio.Event().wait()

        async def commit() -> CoreDirective:
            if ending is not None:
                self._record.ends_proposed.add(task_id)
            directive = await self._runtime.commit_events(self._identity, task_id, events)
            if ending is not None and not directive.fenced:
                self._record.ended_by_agent.setdefault(task_id, self._identity.epoch)
                if ending.status is TaskStatus.CANCELLED and self._store.intent(task_id) is None:
                    self._record.unasked.append(task_id)
            return directive

        return CommitEventsResponse(directive=await self._call(task_id, commit))

    async def _call(self, task_id: str, apply: Callable[[], Awaitable[CoreDirective]]) -> Directive:
        agent = self._agent
        await agent.thawed.wait()
        if agent.link is Link.REQUESTS_LOST:
            raise _error(grpc.StatusCode.UNAVAILABLE)
        was_recorded = self._store.intent(task_id) is not None
        at = self._store.workspace
        was_over = at is not None and at.is_over(agent.epoch)
        try:
            decided = await apply()
            directive = agent_codec.encode_directive(
                decided, self._runtime.lease_seconds, self._runtime.clock()
            )
        except UnavailableError:
            raise _error(grpc.StatusCode.UNAVAILABLE) from None
        except Failure as failure:
            self._record.defects.append(failure)
            raise _error(grpc.StatusCode.FAILED_PRECONDITION) from failure
        if agent.link is Link.REPLIES_LOST:
            raise _error(grpc.StatusCode.UNAVAILABLE)
        await agent.thawed.wait()
        hop = Hop(
            epoch=agent.epoch,
            was_over=was_over,
            was_recorded=was_recorded and directive.task.task_id == task_id,
            says_fenced=directive.fenced,
            says_cancelled=directive.task.HasField("cancellation"),
        )
        self._record.hops.append(hop)
        agent.note_directive(directive)
        return directive


def _error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(), "injected by a rule"
    )
