"""The console loses its connection, and goes on when it is back."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from tests.clients.long.console.cable import Cable, cable
from tests.clients.long.console.console_page import Console
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually


@pytest.fixture
def line(stack: Stack) -> Iterator[Cable]:
    edge = urlsplit(stack.ready["rest_url"])
    assert edge.hostname and edge.port
    with cable((edge.hostname, edge.port)) as plugged:
        yield plugged


@pytest.fixture
def console(browser: Browser, stack: Stack, line: Cable) -> Iterator[Console]:
    opened = Console(browser, line.origin)
    opened.sign_in(stack.tokens["full_access"])
    yield opened
    opened.close()


def test_the_log_goes_on_after_the_last_event(
    console: Console, line: Cable, workspace: Workspace
) -> None:
    workspace.await_end(workspace.submit("echo before"))
    console.open(workspace.id)
    entries = console.page.locator(".timeline > li")
    before = len(workspace.log())
    expect(entries).to_have_count(before)

    line.unplug()
    warning = console.page.get_by_role("alert").filter(has_text="No connection.")
    expect(warning).to_be_visible()
    workspace.await_end(workspace.submit("echo meanwhile"))
    line.plug_in()
    expect(console.page.locator(".timeline")).to_contain_text("meanwhile")
    expect(warning).to_be_hidden()
    # Each event is there once.
    expect(entries).to_have_count(len(workspace.log()))
    assert before in line.resumed_after


def test_a_cancellation_goes_on_without_its_person(
    console: Console, line: Cable, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.begin(gate.command, "touch never")
    console.open(workspace.id)
    console.cancel(reason="before the loss")
    expect(console.step("Accepted")).to_be_visible()
    line.unplug()
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    line.plug_in()
    expect(console.step("Cancelled")).to_be_visible()


def test_a_cancel_without_a_connection_is_not_called_accepted(
    console: Console, line: Cable, workspace: Workspace, gate: Gate
) -> None:
    workspace.begin(gate.command)
    console.open(workspace.id)
    expect(console.page.get_by_role("button", name="Cancel…")).to_be_visible()
    line.unplug()
    console.cancel()
    note = console.cancellation.get_by_role("alert")
    expect(note).to_contain_text("It is not known whether the cancellation is recorded")
    expect(console.step("Accepted")).to_be_hidden()
    line.plug_in()
    console.cancel()
    expect(console.step("Accepted")).to_be_visible()
    gate.open()
    expect(console.step("Cancelled")).to_be_visible()


def test_the_list_is_live_again(
    console: Console, line: Cable, stack: Stack, workspace: Workspace
) -> None:
    console.find(workspace.id)
    status = console.page.locator(".rows .row .status")
    expect(status).to_have_text("idle")
    line.unplug()
    warning = console.page.get_by_role("alert").filter(has_text="No connection.")
    expect(warning).to_be_visible()
    stack.rest().post(f"{workspace.path}/stop")
    eventually(lambda: workspace.get()["status"] == "stopped")
    expect(status).to_have_text("idle")
    line.plug_in()
    expect(status).to_have_text("stopped")
    expect(warning).to_be_hidden()
