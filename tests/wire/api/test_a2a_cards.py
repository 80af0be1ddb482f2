"""Agent cards and push configurations of A2A."""

import json
from typing import Any

import pytest
from a2a.types import a2a_pb2
from evershell.workspace.v1 import workspace_service_pb2 as messages

from evershell.features.a2a.payload import payload
from tests.wire.api.a2a_calls import A2A, error_type, headers, sending
from tests.wire.api.running import OBSERVER, bearer


async def create(a2a: A2A, **fields: Any) -> str:
    request = messages.CreateWorkspaceRequest(name="builder", **fields)
    return (await a2a.running.stub.CreateWorkspace(request, metadata=bearer())).id


async def card_of(a2a: A2A, workspace_id: str, metadata: Any) -> Any:
    request = a2a_pb2.GetExtendedAgentCardRequest(tenant=workspace_id)
    return await a2a.stub.GetExtendedAgentCard(request, metadata=metadata)


async def test_a_card_tells_of_the_workspace_and_its_bindings(a2a: A2A) -> None:
    skills = {"build": "Builds a branch.", "test": ""}
    made = await create(a2a, description="Builds.", skills=skills)
    card = await card_of(a2a, made, headers())
    assert (card.name, card.description) == ("builder", "Builds.")
    assert {(each.name, each.description, *each.tags) for each in card.skills} == {
        ("build", "Builds a branch.", "build"),
        ("test", "test", "test"),
    }
    assert [
        (each.protocol_binding, each.url, each.tenant, each.protocol_version)
        for each in card.supported_interfaces
    ] == [
        ("HTTP+JSON", "https://acme.example.com/a2a", made, "1.0"),
        ("GRPC", "acme.example.com:443", made, "1.0"),
    ]
    assert card.capabilities.streaming and card.capabilities.extended_agent_card
    assert card.security_schemes["bearer"].http_auth_security_scheme.scheme == "Bearer"
    assert len((await card_of(a2a, a2a.workspace.id, headers())).skills) == 1


async def test_only_a_card_that_is_public_needs_no_credential(a2a: A2A) -> None:
    """Every other workspace looks like one that does not exist."""
    public = (("x-evershell-public-card", "1"), ("x-evershell-edge", "rest"))
    shown = await create(a2a, public_card=True)
    request = a2a_pb2.GetExtendedAgentCardRequest(tenant=shown)
    call = a2a.stub.GetExtendedAgentCard(request, metadata=public)
    assert (await call).name == "builder"
    sent = dict(await call.initial_metadata())
    assert sent["cache-control"] == "public, max-age=60" and sent["etag"]
    failures = [
        await a2a.running.fails(card_of(a2a, hidden, public))
        for hidden in (await create(a2a), "ws_none")
    ]
    assert {error_type(each) for each in failures} == {"TASK_NOT_FOUND"}
    refused = await a2a.running.fails(card_of(a2a, shown, ()))
    assert refused.slug == "unauthenticated"
    metadata = (*public, ("a2a-version", "1.0"))
    for other in ("GetTask", "CancelTask", "SubscribeToTask"):
        kind = getattr(a2a_pb2, f"{other}Request")(**a2a.named)
        refused = await a2a.running.fails(getattr(a2a.stub, other)(kind, metadata=metadata))
        assert refused.slug == "unauthenticated"


def pushing(a2a: A2A, **fields: Any) -> Any:
    facts = {"tenant": a2a.workspace.id, "task_id": a2a.task.id, "url": "https://example.com/a"}
    return a2a_pb2.TaskPushNotificationConfig(**{**facts, **fields})


async def test_a_push_configuration_is_a_webhook_of_the_task(a2a: A2A) -> None:
    """A configuration is created, read, listed and deleted by its id. No answer has its secrets."""
    stub = a2a.stub
    task: dict[str, Any] = {"tenant": a2a.workspace.id, "task_id": a2a.task.id}
    secrets = {"token": "t-1", "authentication": {"scheme": "Bearer", "credentials": "c-1"}}
    made = await stub.CreateTaskPushNotificationConfig(
        pushing(a2a, id="mine", **secrets), metadata=headers()
    )
    assert (made.id, made.url, made.task_id) == ("mine", "https://example.com/a", a2a.task.id)
    assert (made.authentication.scheme, made.authentication.credentials) == ("Bearer", "")
    assert not made.token
    get = a2a_pb2.GetTaskPushNotificationConfigRequest(**task, id="mine")
    assert await stub.GetTaskPushNotificationConfig(get, metadata=headers()) == made
    unnamed = [
        await stub.CreateTaskPushNotificationConfig(
            pushing(a2a, url="https://example.com/b"), metadata=headers()
        )
        for _ in range(2)
    ]
    assert unnamed[0].id == unnamed[1].id
    listed = await stub.ListTaskPushNotificationConfigs(
        a2a_pb2.ListTaskPushNotificationConfigsRequest(**task), metadata=headers()
    )
    assert {each.id for each in listed.configs} == {"mine", unnamed[0].id}
    delete = a2a_pb2.DeleteTaskPushNotificationConfigRequest(**task, id="mine")
    for _ in range(2):
        await stub.DeleteTaskPushNotificationConfig(delete, metadata=headers())
    gone = await a2a.running.fails(stub.GetTaskPushNotificationConfig(get, metadata=headers()))
    assert error_type(gone) == "TASK_NOT_FOUND"
    elsewhere = pushing(a2a, task_id="task_none")
    none = await a2a.running.fails(
        stub.CreateTaskPushNotificationConfig(elsewhere, metadata=headers())
    )
    assert error_type(none) == "TASK_NOT_FOUND"
    by_observer = stub.CreateTaskPushNotificationConfig(pushing(a2a), metadata=headers(OBSERVER))
    assert (await a2a.running.fails(by_observer)).slug == "permission_denied"
    again = stub.DeleteTaskPushNotificationConfig(delete, metadata=headers(OBSERVER))
    assert (await a2a.running.fails(again)).slug == "permission_denied"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"url": "http://example.com"}, "url"),
        ({"url": ""}, "url"),
        ({"token": "a\nb"}, "token"),
        ({"authentication": {"credentials": "c"}}, "authentication.scheme"),
        ({"id": "a b"}, "id"),
    ],
)
async def test_a_push_configuration_that_is_not_valid_is_refused(
    a2a: A2A, fields: dict[str, Any], field: str
) -> None:
    """A message with such a configuration does not begin a task."""
    idle = await a2a.world.add()
    config = {"url": "https://example.com/a", **fields}
    message_ = sending(idle.id, configuration={"task_push_notification_config": config})
    for call in (
        a2a.stub.CreateTaskPushNotificationConfig(pushing(a2a, **fields), metadata=headers()),
        a2a.stub.SendMessage(message_, metadata=headers()),
    ):
        refused = await a2a.running.fails(call)
        assert refused.slug == "validation_error"
        assert refused.details["BadRequest"].field_violations[0].field == field
    assert (await a2a.world.workspace(idle.id)).current_task_id is None


async def test_a_message_can_bring_its_push_configuration(a2a: A2A) -> None:
    idle = await a2a.world.add()
    config = {"url": "https://example.com/a"}
    request = sending(
        idle.id,
        configuration={"return_immediately": True, "task_push_notification_config": config},
    )
    for _ in range(2):
        answer = await a2a.stub.SendMessage(request, metadata=headers())
    listed = await a2a.stub.ListTaskPushNotificationConfigs(
        a2a_pb2.ListTaskPushNotificationConfigsRequest(tenant=idle.id, task_id=answer.task.id),
        metadata=headers(),
    )
    assert [each.url for each in listed.configs] == ["https://example.com/a"]


async def test_a_push_notification_has_one_update(a2a: A2A) -> None:
    """The update about the end contains the task with its result."""
    await a2a.world.end(a2a.workspace.id, a2a.task.id, result="found")
    bodies = [
        json.loads(payload(event)[1])
        for event in await a2a.world.events(a2a.workspace.id)
        if event.task_id
    ]
    assert [list(body) for body in bodies] == [["statusUpdate"], ["statusUpdate"], ["task"]]
    ended = bodies[-1]["task"]
    assert ended["status"]["state"] == "TASK_STATE_COMPLETED"
    assert ended["artifacts"][0]["parts"][0]["text"] == "found"
