"""RuntimeService, which agents call.

Each method decodes the request, calls the core, and encodes the response.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import structlog
from evershell.agent.v1 import runtime_service_pb2, runtime_service_pb2_grpc
from evershell.workspace.v1 import task_pb2

from evershell.api import agent_codec, codec
from evershell.api.call import agent, agent_key, current, origin
from evershell.core.agent_rules import BreachError
from evershell.core.children import AgentCaller, Children
from evershell.core.errors import Failure
from evershell.core.runtime import AgentIdentity, Directive, Runtime
from evershell.pod.spec import PodSpec

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

# How much of an agent's reported version is logged.
_MAX_VERSION_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class RuntimeServicer(runtime_service_pb2_grpc.RuntimeServiceServicer):
    """The internal service. runtime_service.proto has the contract of each method."""

    runtime: Runtime
    # Makes the spec of an agent.
    spec_for: Callable[[AgentIdentity], PodSpec]
    children: Children
    # The model of the agents, if it has no price; otherwise empty.
    model_without_price: str = ""

    async def Bootstrap(
        self, request: runtime_service_pb2.BootstrapRequest, context: Context
    ) -> runtime_service_pb2.BootstrapResponse:
        await self.runtime.begin_bootstrap(agent())
        return runtime_service_pb2.BootstrapResponse(
            spec=json.dumps(asdict(self.spec_for(agent())))
        )

    async def Register(
        self, request: runtime_service_pb2.RegisterRequest, context: Context
    ) -> runtime_service_pb2.RegisterResponse:
        async with self._breaches_recorded():
            directive = await self.runtime.register(agent(), request.address)
        # Shows operators which agents still run an earlier version.
        if not directive.fenced:
            log.info(
                "agent_registered",
                workspace_id=agent().workspace_id,
                epoch=agent().epoch,
                version=request.version[:_MAX_VERSION_CHARACTERS],
            )
        return runtime_service_pb2.RegisterResponse(directive=self._encode(directive))

    async def Heartbeat(
        self, request: runtime_service_pb2.HeartbeatRequest, context: Context
    ) -> runtime_service_pb2.HeartbeatResponse:
        async with self._breaches_recorded():
            phase = agent_codec.decode_phase(request.phase)
            directive = await self.runtime.heartbeat(agent(), request.task_id, phase)
        return runtime_service_pb2.HeartbeatResponse(directive=self._encode(directive))

    async def CommitEvents(
        self, request: runtime_service_pb2.CommitEventsRequest, context: Context
    ) -> runtime_service_pb2.CommitEventsResponse:
        async with self._breaches_recorded():
            events = agent_codec.decode_commit(request)
            directive = await self.runtime.commit_events(
                agent(), request.task_id, events, current().trace_id
            )
        return runtime_service_pb2.CommitEventsResponse(directive=self._encode(directive))

    async def SubmitChild(
        self, request: runtime_service_pb2.SubmitChildRequest, context: Context
    ) -> task_pb2.Task:
        by = await self._enter(request.parent_task_id)
        decoded = codec.decode_submit(
            request, origin(), agent_key(request), self.model_without_price
        )
        return codec.encode_task(await self.children.submit(by, decoded))

    async def GetChild(
        self, request: runtime_service_pb2.GetChildRequest, context: Context
    ) -> task_pb2.Task:
        by = await self._enter(request.parent_task_id)
        child = await self.children.read(by, request.workspace_id, request.task_id)
        return codec.encode_task(child)

    async def CancelChild(
        self, request: runtime_service_pb2.CancelChildRequest, context: Context
    ) -> task_pb2.Task:
        by = await self._enter(request.parent_task_id)
        decoded = agent_codec.decode_cancel_child(request, origin())
        return codec.encode_task(await self.children.cancel(by, decoded))

    async def _enter(self, parent_task_id: str) -> AgentCaller:
        """Makes the agent the caller of the current call, so that the audit log names the agent."""
        by = await self.children.enter(agent(), parent_task_id)
        current().caller = by.caller
        return by

    @asynccontextmanager
    async def _breaches_recorded(self) -> AsyncIterator[None]:
        """Handles a BreachError of the block: records that the agent broke a rule, and refuses the
        call.

        Raises Failure validation_error.
        """
        try:
            yield
        except BreachError as breach:
            if await self.runtime.record_breach(agent(), breach):
                log.warning("agent_broke_rule", workspace_id=agent().workspace_id, rule=str(breach))
            message = f"The message is refused, and the pod is ended: {breach}."
            raise Failure("validation_error", message, fields={}) from breach

    def _encode(self, directive: Directive) -> runtime_service_pb2.Directive:
        return agent_codec.encode_directive(
            directive, self.runtime.lease_seconds, self.runtime.clock()
        )
