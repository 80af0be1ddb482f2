"""The deliveries of a task in the console, and the button that sends them again."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.clients.console.console_page import Console
from tests.support.receivers import Receiver, accept, receiving, refuse
from tests.support.stack import Stack, Workspace


@pytest.fixture
def receiver(stack: Stack) -> Iterator[Receiver]:
    """A receiver that refuses events about the end of a task."""
    with receiving() as running:
        running.behaviour = refuse("410 Gone")
        body = {"url": running.url, "event_types": ["task_completed"]}
        webhook_id = stack.rest().post("/v1/webhooks", body, 201)["webhook"]["id"]
        yield running
        assert stack.rest().call("DELETE", f"/v1/webhooks/{webhook_id}").is_success


def test_a_person_sends_again_what_has_failed(
    console: Console, workspace: Workspace, receiver: Receiver
) -> None:
    console.show(workspace)
    task_id = workspace.submit("echo hello")
    deliveries = console.page.get_by_role("region", name="Webhooks")
    expect(deliveries).to_contain_text(receiver.url)
    expect(deliveries.locator(".badge")).to_have_text("failed")
    expect(deliveries).to_contain_text("410")

    receiver.behaviour = refuse("503 Service Unavailable")
    deliveries.get_by_role("button", name=f"Replay to {receiver.url}").click()
    expect(deliveries.locator(".badge")).to_have_text("pending")
    expect(deliveries).to_contain_text("1 failed attempt")
    expect(deliveries).to_contain_text("503")
    expect(deliveries).to_contain_text(re.compile("next attempt in [0-9]+ s"))
    expect(deliveries.get_by_role("button")).to_have_count(0)

    receiver.behaviour = accept
    expect(deliveries.locator(".badge")).to_have_text("delivered", timeout=30_000)
    assert workspace.await_end(task_id)["status"] == "completed"
    console.check()


def test_a_token_that_may_not_replay_sees_the_missing_scope(
    console: Console, stack: Stack, workspace: Workspace, receiver: Receiver
) -> None:
    workspace.await_end(workspace.submit("echo hello"))
    console.sign_in(stack.tokens["read_only"])
    console.open(workspace.id)
    deliveries = console.page.get_by_role("region", name="Webhooks")
    button = deliveries.get_by_role("button")
    button.click()
    expect(deliveries.get_by_role("alert")).to_contain_text("webhooks:write")
    expect(button).to_have_count(0)
