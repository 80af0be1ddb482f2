"""The console loses its connection, and continues when the connection is back."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.clients.console.console_page import Console
from tests.clients.long.proxy import Proxy, proxy
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually


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
    expect(console.health).to_contain_text("no answer")
    workspace.await_end(workspace.submit("echo meanwhile"))
    line.plug_in()
    expect(console.log).to_contain_text("meanwhile")
    expect(console.health).to_contain_text("live")
    # The page shows each event once.
    console.page.locator("details.group:not([open]) > summary").click()
    count_events(console, len(workspace.log()))
    assert str(before) in line.last_ids


def test_the_list_goes_on_after_the_last_event(
    console: Console, line: Proxy, workspace: Workspace, gate: Gate
) -> None:
    console.await_list()
    whole = console.whole_list_calls()
    line.unplug()
    workspace.begin(f"{gate.command} # meanwhile")
    line.plug_in()
    row = console.rows.filter(has_text="# meanwhile")
    expect(row).to_have_count(1)
    gate.open()
    expect(row).to_have_count(0)
    assert console.whole_list_calls() == whole
    first, *later = console.stream_ids()
    assert first is None and later and all(later)


def test_a_list_that_cannot_go_on_is_read_again(
    console: Console, line: Proxy, workspace: Workspace, gate: Gate
) -> None:
    console.await_list()
    whole = console.whole_list_calls()

    def move(route: Route) -> None:
        # The service refuses this position, as it refuses one that is too old.
        headers = route.request.headers
        moved = {"last-event-id": "9" * 15} if "last-event-id" in headers else {}
        route.continue_(headers=headers | moved)

    console.page.route("**/v1/events", move)
    line.unplug()
    workspace.begin(f"{gate.command} # meanwhile")
    line.plug_in()
    row = console.rows.filter(has_text="# meanwhile")
    expect(row).to_have_count(1)
    eventually(lambda: len(console.whole_list_calls()) == 2 * len(whole))
    expect(console.health).to_contain_text("live")
    gate.open()
    expect(row).to_have_count(0)
    assert len(console.whole_list_calls()) == 2 * len(whole)
    assert console.stream_ids()[-1] is None


def count_events(console: Console, count: int) -> None:
    expect(console.page.locator(".timeline > li")).to_have_count(count)
