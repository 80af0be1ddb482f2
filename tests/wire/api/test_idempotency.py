"""The idempotency key of a call, and the fingerprint of its request."""

from typing import Any

import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages

from evershell.api.call import fingerprint
from tests.support.world import World
from tests.wire.api.running import Running, bearer


def submission(workspace_id: str, **fields: Any) -> messages.SubmitTaskRequest:
    facts = {"description": "true", "metadata": {"a": "1", "b": "2"}, **fields}
    return messages.SubmitTaskRequest(workspace_id=workspace_id, **facts)


def test_a_fingerprint_is_that_of_method_and_fields() -> None:
    """The order in which metadata is set does not matter."""
    metadata = {f"key {number}": "x" for number in range(32)}
    forwards = submission("ws_1", metadata=metadata)
    backwards = submission("ws_1", metadata=dict(reversed(metadata.items())))
    assert fingerprint(forwards) == fingerprint(backwards)
    one, other = (
        messages.CreateWorkspaceRequest(name="x"),
        messages.SubmitTaskRequest(workspace_id="x"),
    )
    assert one.SerializeToString() == other.SerializeToString()
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    "change", [{"description": "false"}, {"metadata": {"a": "1"}}, {"max_iterations": 7}]
)
async def test_every_field_makes_another_request(
    server: Running, world: World, change: dict[str, Any]
) -> None:
    idle = await world.add()
    metadata = bearer(idempotency_key="k")
    await server.stub.SubmitTask(submission(idle.id), metadata=metadata)
    seen = await server.fails(
        server.stub.SubmitTask(submission(idle.id, **change), metadata=metadata)
    )
    assert seen.slug == "idempotency_conflict"
    other = await server.fails(
        server.stub.CreateWorkspace(messages.CreateWorkspaceRequest(), metadata=metadata)
    )
    assert other.slug == "idempotency_conflict"


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_key_has_1_to_255_characters(server: Running, world: World, key: str) -> None:
    metadata = bearer(idempotency_key=key)
    for call in (
        server.stub.SubmitTask(submission("ws_1"), metadata=metadata),
        server.stub.CreateWorkspace(messages.CreateWorkspaceRequest(), metadata=metadata),
    ):
        seen = await server.fails(call)
        assert seen.slug == "validation_error"
        (violation,) = seen.details["BadRequest"].field_violations
        assert violation.field == "idempotency-key"
    longest = bearer(idempotency_key="k" * 255)
    await server.stub.CreateWorkspace(messages.CreateWorkspaceRequest(), metadata=longest)
