"""The clients of the SDKs of A2A walk through the service, over each binding that they have.

Each client gets the card, sends a message, streams, is cut off, subscribes again, cancels the task
while it runs, cancels it again, and is refused after its end. A receiver gets the push
notifications.
"""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from a2a.client.card_resolver import A2ACardResolver
from a2a.client.client import Client, ClientCallContext, ClientConfig
from a2a.client.client_factory import ClientFactory
from a2a.client.errors import A2AClientError
from a2a.types import a2a_pb2
from a2a.utils.errors import A2AError

from tests.clients.long.a2a.cards import card_of, card_url
from tests.support.npm import node, program_folder
from tests.support.receivers import Receiver, Request, receiving
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

PROGRAM = Path(__file__).with_name("programs") / "walk.mjs"
BINDINGS = ["HTTP+JSON", "GRPC"]
QUICK = "echo one"
PUSH_TOKEN = "token-of-the-client"
PUSHED = "TASK_STATE_CANCELED"
# The time limit for a push notification. A worker looks for webhooks only every 5 s, and then
# starts the process that sends.
LIMIT_SECONDS = 40.0
# Once the client has created the file `hold`, an iteration waits at the gate, so that the client
# can cancel the task twice before it ends.
LONG = "\n".join([f"sleep 1; [ ! -e hold ] || {Gate.command}"] * 100)


@pytest.mark.parametrize("binding", BINDINGS)
def test_the_python_client_walks(
    stack: Stack, workspace: Workspace, gate: Gate, binding: str
) -> None:
    with receiving() as receiver:
        walk = _Walk(stack, workspace, gate, binding, receiver)
        check(asyncio.run(asyncio.wait_for(walk.run(), 60)), workspace, receiver)


@pytest.mark.parametrize("binding", BINDINGS)
def test_the_javascript_client_walks(
    stack: Stack, workspace: Workspace, gate: Gate, binding: str, tmp_path: Path
) -> None:
    folder = program_folder(tmp_path, PROGRAM)
    with receiving() as receiver:
        done = node(
            folder / PROGRAM.name,
            folder=folder,
            seconds=60,
            CARD=card_url(stack, workspace),
            BINDING=binding,
            TOKEN=stack.tokens["owner"],
            QUICK=QUICK,
            LONG=LONG,
            GATE=str(gate.path),
            HOLD=str(gate.path.with_name("hold")),
            PUSH=receiver.url,
            PUSH_TOKEN=PUSH_TOKEN,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        check(json.loads(done.stdout), workspace, receiver)


def check(seen: dict[str, Any], workspace: Workspace, receiver: Receiver) -> None:
    assert seen["card"] == "test"
    assert seen["sent"] == {"state": "TASK_STATE_COMPLETED", "text": "Ran 1 command."}
    assert seen["first"] == ["task", *["statusUpdate"] * 3]
    assert seen["resumed"][:2] == ["task", "statusUpdate"]
    # The task is WORKING until it has ended, and the first cancellation stays recorded.
    assert {seen[name]["state"] for name in ("cancelled", "again")} == {"TASK_STATE_WORKING"}
    assert seen["cancelled"]["requested"] == seen["again"]["requested"]
    assert seen["last"] == "TASK_STATE_CANCELED"
    assert seen["listed"] == [seen["id"]]
    assert seen["after"].startswith("TaskNotCancelable|")
    assert seen["unknown"].startswith("TaskNotFound|")
    assert seen["ended"].startswith("UnsupportedOperation|")
    eventually(lambda: PUSHED in [_state_in(each) for each in receiver.requests], LIMIT_SECONDS)
    assert {each.headers["x-a2a-notification-token"] for each in receiver.requests} == {PUSH_TOKEN}
    task = workspace.task(seen["id"])
    assert task["status"] == "cancelled"
    assert task["iterations"] < 100


def _state_in(request: Request) -> str:
    (of,) = request.event.values()
    return str(of.get("status", {}).get("state"))


class _Walk:
    """The walk with a2a-sdk's client."""

    def __init__(
        self, stack: Stack, workspace: Workspace, gate: Gate, binding: str, receiver: Receiver
    ) -> None:
        self._gate = gate
        self._receiver = receiver
        self._binding = binding
        self._stack, self._workspace = stack, workspace
        self._headers = {"authorization": f"Bearer {stack.tokens['owner']}"}
        self._context = ClientCallContext(service_parameters=self._headers, timeout=30)
        self._seen: dict[str, Any] = {}

    async def run(self) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False, timeout=30, headers=self._headers) as http:
            card = await card_of(http, self._stack, self._workspace)
            config = ClientConfig(
                httpx_client=http,
                grpc_channel_factory=grpc.aio.insecure_channel,
                supported_protocol_bindings=[self._binding],
            )
            async with ClientFactory(config).create(card) as client:
                config.streaming = False
                await self._send(client)
                config.streaming = True
                await self._cut(client)
                await self._cancel(client)
                await self._afterwards(client)
        return self._seen

    async def _send(self, client: Client) -> None:
        request = a2a_pb2.GetExtendedAgentCardRequest()
        card = await client.get_extended_agent_card(request, context=self._context)
        self._seen["card"] = card.name
        async for event in client.send_message(_message(QUICK), context=self._context):
            text = event.task.artifacts[0].parts[0].text
            self._seen["sent"] = {"state": _state(event.task), "text": text}

    async def _cut(self, client: Client) -> None:
        events: list[str] = []
        stream = client.send_message(_message(LONG), context=self._context)
        async for event in stream:
            events.append(_kind(event))
            if event.HasField("task"):
                self._seen["id"] = event.task.id
            if len(events) == 4:
                break
        await stream.aclose()
        self._seen["first"] = events
        config = a2a_pb2.TaskPushNotificationConfig(
            task_id=self._seen["id"], url=self._receiver.url, token=PUSH_TOKEN
        )
        await client.create_task_push_notification_config(config, context=self._context)

    async def _cancel(self, client: Client) -> None:
        task_id = self._seen["id"]
        events = self._seen["resumed"] = []
        request = a2a_pb2.SubscribeToTaskRequest(id=task_id)
        async with asyncio.TaskGroup() as group:
            async for event in client.subscribe(request, context=self._context):
                events.append(_kind(event))
                if event.HasField("status_update"):
                    self._seen["last"] = _state(event.status_update)
                if len(events) == 2:
                    group.create_task(self._cancel_twice(client, task_id))

    async def _cancel_twice(self, client: Client, task_id: str) -> None:
        self._gate.path.with_name("hold").touch()
        with contextlib.ExitStack() as stack:
            await asyncio.to_thread(stack.enter_context, self._gate.reached())
            for name in ("cancelled", "again"):
                request = a2a_pb2.CancelTaskRequest(id=task_id)
                task = await client.cancel_task(request, context=self._context)
                requested = task.metadata["cancel_requested_at"]
                self._seen[name] = {"state": _state(task), "requested": requested}

    async def _afterwards(self, client: Client) -> None:
        task_id, context = self._seen["id"], self._context

        async def subscribe() -> None:
            async for _ in client.subscribe(
                a2a_pb2.SubscribeToTaskRequest(id=task_id), context=context
            ):
                pass

        for name, call in {
            "after": client.cancel_task(a2a_pb2.CancelTaskRequest(id=task_id), context=context),
            "unknown": client.get_task(a2a_pb2.GetTaskRequest(id="task_unknown"), context=context),
            "ended": subscribe(),
        }.items():
            with pytest.raises(A2AError) as refused:
                await call
            error = refused.value
            self._seen[name] = f"{type(error).__name__.removesuffix('Error')}|{error}"
        page = await client.list_tasks(
            a2a_pb2.ListTasksRequest(status=a2a_pb2.TASK_STATE_CANCELED, page_size=5),
            context=context,
        )
        self._seen["listed"] = [task.id for task in page.tasks]


def _message(text: str) -> Any:
    part = a2a_pb2.Part(text=text)
    message = a2a_pb2.Message(message_id=text[:20], role=a2a_pb2.ROLE_USER, parts=[part])
    return a2a_pb2.SendMessageRequest(message=message)


def _kind(event: Any) -> str:
    return "statusUpdate" if event.HasField("status_update") else str(event.WhichOneof("payload"))


def _state(of: Any) -> str:
    return str(a2a_pb2.TaskState.Name(of.status.state))


async def test_only_a_public_card_needs_no_credential(stack: Stack, workspace: Workspace) -> None:
    body = {"name": "shop", "public_card": True}
    public = stack.rest().post("/v1/workspaces", body, status=201)
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        of_public, of_other = (
            A2ACardResolver(http, f"{stack.ready['rest_url']}/a2a/{each}")
            for each in (public["id"], workspace.id)
        )
        card = await of_public.get_agent_card()
        with pytest.raises(A2AClientError, match="404"):
            await of_other.get_agent_card()
    assert card.name == "shop"
    interfaces = card.supported_interfaces
    assert {each.protocol_binding for each in interfaces} == set(BINDINGS)
    assert {each.tenant for each in interfaces} == {public["id"]}
    stack.rest().post(f"/v1/workspaces/{public['id']}/stop")
