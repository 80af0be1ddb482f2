"""Webhooks on a whole stack: created over REST, and called by the workers."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.receivers import Receiver, accept, receiving, refuse
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

TYPES = [
    "task_submitted",
    "task_started",
    "iteration_completed",
    "task_cancel_requested",
    "task_completed",
]
# The time limit for a delivery. A worker notices the first webhook within 5 s, and then starts the
# process that delivers events.
LIMIT_SECONDS = 40.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def create(stack: Stack, receiver: Receiver, *types: str) -> dict[str, Any]:
    body = {"url": receiver.url, "event_types": list(types)}
    return stack.rest("owner").post("/v1/webhooks", body, 201)


def delete(stack: Stack, created: dict[str, Any]) -> None:
    path = f"/v1/webhooks/{created['webhook']['id']}"
    assert stack.rest("owner").call("DELETE", path).status_code == 200
    assert stack.rest("owner").fails("DELETE", path).slug == "webhook_not_found"


def deliveries(workspace: Workspace, task_id: str) -> list[dict[str, Any]]:
    path = f"{workspace.path}/tasks/{task_id}/webhook-deliveries"
    listed: list[dict[str, Any]] = workspace.rest.get(path)["deliveries"]
    return listed


def statuses(workspace: Workspace, task_id: str) -> list[str]:
    """The statuses of the task's deliveries. A delivery is listed once its event was read."""
    return [each["status"] for each in deliveries(workspace, task_id)]


def test_a_secret_is_answered_once_to_the_caller_who_created_the_webhook(
    stack: Stack, receiver: Receiver
) -> None:
    """A colleague who repeats the request with the same idempotency key does not get the secret."""
    body = {"url": receiver.url, "event_types": ["task_completed"]}

    def create_again(user: str) -> dict[str, Any]:
        response = stack.rest(user).call(
            "POST", "/v1/webhooks", json=body, headers={"idempotency-key": "weekly"}
        )
        assert response.status_code == 201, response.text
        created: dict[str, Any] = response.json()
        return created

    first = create_again("owner")
    assert first["secret"].startswith("whsec_")
    assert create_again("owner") == {**first, "secret": ""}
    other = create_again("full_access")
    assert other["webhook"]["id"] != first["webhook"]["id"]
    assert other["secret"] not in ("", first["secret"])
    for created in (first, other):
        delete(stack, created)


def test_a_receiver_gets_each_event_in_order(
    stack: Stack, workspace: Workspace, receiver: Receiver
) -> None:
    created = create(stack, receiver, *TYPES)
    assert stack.rest("owner").get("/v1/webhooks")["webhooks"] == [created["webhook"]]
    task_id = workspace.begin("sleep 0.5", "sleep 30")
    workspace.cancel(force_after="0s")
    workspace.await_end(task_id)
    expected = events_of(workspace, task_id)
    eventually(lambda: len(receiver.events(task_id)) >= len(expected), LIMIT_SECONDS)
    assert receiver.events(task_id) == expected
    for request in receiver.requests:
        assert request.verified(created["secret"])["workspace_id"]
        assert request.headers["user-agent"] == "Evershell-Webhooks"
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert len(set(ids)) == len(ids)
    eventually(lambda: statuses(workspace, task_id) == ["delivered"], LIMIT_SECONDS)
    (delivery,) = deliveries(workspace, task_id)
    assert delivery["delivered_seq"] == delivery["last_seq"] == expected[-1]["seq"]
    delete(stack, created)
    assert stack.rest("owner").get("/v1/webhooks") == {"webhooks": []}


def test_a_receiver_that_was_gone_gets_its_events_after_a_replay(
    stack: Stack, workspace: Workspace, receiver: Receiver
) -> None:
    receiver.behaviour = refuse("410 Gone")
    created = create(stack, receiver, "task_completed")
    webhook_id = created["webhook"]["id"]
    task_id = workspace.submit("true")
    workspace.await_end(task_id)
    eventually(lambda: statuses(workspace, task_id) == ["failed"], LIMIT_SECONDS)
    assert deliveries(workspace, task_id)[0]["last_error"] == "the receiver answered 410"
    (listed,) = stack.rest("owner").get("/v1/webhooks")["webhooks"]
    assert listed["disabled_at"]
    seen = len(receiver.requests)
    later_id = workspace.submit("true")
    workspace.await_end(later_id)
    eventually(lambda: statuses(workspace, later_id) == ["failed"], LIMIT_SECONDS)
    assert len(receiver.requests) == seen
    receiver.behaviour = accept
    replay = stack.rest("owner").post(f"/v1/webhooks/{webhook_id}/replay", {}, 200)
    assert replay == {"replayed": 2, "remaining": 0}
    for each in (task_id, later_id):
        eventually(lambda: statuses(workspace, each) == ["delivered"], LIMIT_SECONDS)
    delete(stack, created)


def events_of(workspace: Workspace, task_id: str) -> list[dict[str, Any]]:
    """Returns the events of a task that has ended, as the stream shows them."""
    events = []
    for message in workspace.rest.events(workspace.id):
        event = message.get("event", {})
        if event.get("task_id") == task_id:
            events.append(event)
            if event["type"] == "task_completed":
                break
    return events
