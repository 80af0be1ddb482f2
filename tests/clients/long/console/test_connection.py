"""The console loses its connection, and continues when the connection is back."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.clients.console.console_page import Console
from tests.clients.long.proxy import Proxy, proxy
from tests.support.stack import Gate, Stack, Workspace


@pytest.fixture
def line(stack: Stack) -> Iterator[Proxy]:
    with proxy(stack) as plugged:
        yield plugged


@pytest.fixture
def console(browser: Browser, stack: Stack, line: Proxy) -> Iterator[Console]:
    opened = Console(browser, line.url)
    opened.sign_in(stack.tokens["full_access"])
    yield opened
    opened.close()


def test_the_log_goes_on_after_the_last_event(
    console: Console, line: Proxy, workspace: Workspace
) -> None:
    workspace.await_end(workspace.submit("echo before"))
    console.open(workspace.id)
    before = len(workspace.log())
    count_events(console, before)

    line.unplug()
    warning = console.page.get_by_role("alert").filter(has_text="No connection.")
    expect(warning).to_be_visible()
    workspace.await_end(workspace.submit("echo meanwhile"))
    line.plug_in()
    expect(console.log).to_contain_text("meanwhile")
    expect(warning).to_be_hidden()
    # The page shows each event once.
    console.page.locator("details.group:not([open]) > summary").click()
    count_events(console, len(workspace.log()))
    assert str(before) in line.last_ids


def count_events(console: Console, count: int) -> None:
    expect(console.page.locator(".timeline > li")).to_have_count(count)


@pytest.mark.soak
def test_a_cancel_without_a_connection_is_not_called_accepted(
    console: Console, line: Proxy, workspace: Workspace, gate: Gate
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
