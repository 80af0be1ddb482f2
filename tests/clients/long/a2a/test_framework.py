"""An agent of Pydantic AI delegates a task to a workspace over A2A, and cancels the task."""

import asyncio
import json
from typing import Any

import httpx
from a2a.client.client import Client, ClientCallContext, ClientConfig
from a2a.client.client_factory import ClientFactory
from a2a.types import a2a_pb2

from tests.clients.long.a2a.cards import card_of
from tests.support.model_server import calls_tools, model_server, says
from tests.support.stack import Gate, Stack, Workspace
from tests.unit.agents.long.adapters.frameworks import need


async def test_an_agent_cancels_what_it_has_delegated(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    need("pydantic_ai")
    headers = {"authorization": f"Bearer {stack.tokens['full_access']}"}
    async with httpx.AsyncClient(trust_env=False, timeout=30, headers=headers) as http:
        config = ClientConfig(
            httpx_client=http,
            supported_protocol_bindings=["HTTP+JSON"],
            streaming=False,
            polling=True,
        )
        card = await card_of(http, stack, workspace)
        async with ClientFactory(config).create(card) as client:
            remote = _Remote(client, workspace, gate)
            with model_server() as server:
                # The fields that OpenAI's client requires in an answer that is not a stream.
                fields: Any = {"id": "chatcmpl_1", "created": 1}
                server.script += [
                    calls_tools(("delegate", json.dumps({"work": gate.command})), **fields),
                    calls_tools(("stop", "{}"), **fields),
                    says("It was stopped.", **fields),
                ]
                assert await _run(server.base_url, remote) == "It was stopped."
                answers = [
                    message["content"]
                    for message in server.requests[-1]["messages"]
                    if message["role"] == "tool"
                ]
    assert answers[0] in ("TASK_STATE_SUBMITTED", "TASK_STATE_WORKING")
    assert answers[1] == "TASK_STATE_CANCELED"
    assert workspace.task(remote.task_id)["status"] == "cancelled"


class _Remote:
    """The remote agent, which the local agent uses through two tools."""

    def __init__(self, client: Client, workspace: Workspace, gate: Gate) -> None:
        self._client, self._workspace, self._gate = client, workspace, gate
        self.task_id = ""

    async def delegate(self, work: str) -> str:
        """Gives the remote agent a task."""
        message = a2a_pb2.Message(
            message_id="m_1", role=a2a_pb2.ROLE_USER, parts=[a2a_pb2.Part(text=work)]
        )
        async for event in self._client.send_message(a2a_pb2.SendMessageRequest(message=message)):
            self.task_id = event.task.id
        return str(a2a_pb2.TaskState.Name(event.task.status.state))

    async def stop(self) -> str:
        """Cancels the task, and waits until it has ended."""
        # Waits until the command runs. A task that is cancelled earlier ends without running it.
        await asyncio.to_thread(self._workspace.await_phase, self.task_id, "tool_call")
        request = a2a_pb2.CancelTaskRequest(id=self.task_id, metadata={"wait": "20s"})
        context = ClientCallContext(timeout=30)
        stopping = asyncio.create_task(self._client.cancel_task(request, context=context))
        await asyncio.to_thread(self._let_it_end)
        return str(a2a_pb2.TaskState.Name((await stopping).status.state))

    def _let_it_end(self) -> None:
        """Lets the iteration end once the cancellation is recorded."""
        self._workspace.await_event("task_cancel_requested")
        self._gate.open()


async def _run(base_url: str, remote: _Remote) -> Any:
    # Only the long tests install these packages.
    import pydantic_ai
    from openai import AsyncOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with AsyncOpenAI(base_url=base_url, api_key="k", max_retries=0) as model:
        agent = pydantic_ai.Agent(
            OpenAIChatModel("test", provider=OpenAIProvider(openai_client=model)),
            tools=[remote.delegate, remote.stop],
        )
        return (await agent.run("Delegate the work, then stop it.")).output
