"""The network swallows what the console sends and gets. The console says what it does not know."""

import time

from playwright.sync_api import APIResponse, Locator, Route, expect

from tests.clients.console.console_page import Console
from tests.clients.long.console.test_connection import console, line  # noqa: F401 - fixtures
from tests.clients.long.proxy import Proxy
from tests.support.stack import Gate, Workspace

# How soon the page says that the service is silent. Heartbeats come every 4 s, and what is older
# than 5 s is not known.
NOTICED_MS = 10_000
CHOICE = "Finish"
UNKNOWN = "It is not known whether it was recorded. Trying again."


def silence(console: Console, line: Proxy) -> float:  # noqa: F811
    """Silences the service. Returns how many seconds the page took to say so."""
    expect(console.health).to_contain_text("live, ")
    begun = time.monotonic()
    line.swallow()
    expect(console.health).to_contain_text("no answer for", timeout=NOTICED_MS)
    return time.monotonic() - begun


def test_a_silent_list_says_so(
    console: Console,  # noqa: F811
    line: Proxy,  # noqa: F811
    workspace: Workspace,
    gate: Gate,
) -> None:
    workspace.begin(gate.command)
    console.find(workspace.id)
    row = console.rows.first
    since = row.locator(".since")
    expect(since).to_have_text("6 s")
    top = row.bounding_box()
    color = color_of(console)

    print(f"list: {silence(console, line):.1f} s")
    expect(console.health).to_contain_text("no answer for 7 s")
    stopped = since.inner_text()
    assert color_of(console) != color
    # The time does not go on, and no row has moved.
    expect(console.health).to_contain_text("no answer for 10 s")
    assert since.inner_text() == stopped
    assert row.bounding_box() == top

    # The page of a workspace that is opened in silence says so from the beginning.
    console.open(workspace.id)
    expect(console.health).to_contain_text("no answer for")
    line.plug_in()
    expect(console.health).to_contain_text("live, ")
    expect(console.log).to_contain_text("Task started")
    running = console.page.locator("dd .lasting")
    expect(running).to_be_visible()
    print(f"page: {silence(console, line):.1f} s")
    expect(console.health).to_contain_text("no answer for 7 s")
    stopped = running.inner_text()
    expect(console.health).to_contain_text("no answer for 10 s")
    assert running.inner_text() == stopped
    line.plug_in()
    expect(running).not_to_have_text(stopped)
    gate.open()
    expect(console.log).to_contain_text("Task completed")


def test_a_press_without_an_answer_is_repeated(
    console: Console,  # noqa: F811
    line: Proxy,  # noqa: F811
    workspace: Workspace,
    gate: Gate,
) -> None:
    task_id = workspace.begin(gate.command)
    console.open(workspace.id)
    expect(console.page.get_by_role("button", name="Cancel this task")).to_be_visible()
    line.swallow()
    console.cancel(reason="silence")
    print(f"press: {says(console.cancellation.get_by_role('alert')):.1f} s")
    expect(console.cancellation).not_to_contain_text("Accepted")
    expect(console.cancellation).not_to_contain_text("answered in")
    line.plug_in()
    note = console.cancellation.get_by_role("status")
    expect(note).to_have_text("The first try was not recorded. The repeat was.")
    expect(console.step("Accepted")).to_contain_text("reason: silence")
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    expect(note).to_have_count(0)


def test_a_bulk_without_an_answer_is_repeated(
    console: Console,  # noqa: F811
    line: Proxy,  # noqa: F811
    workspace: Workspace,
    gate: Gate,
) -> None:
    task_id = workspace.begin(gate.command)
    console.find(workspace.id)
    console.page.get_by_role("button", name="Cancel this task…").click()
    dialog = console.page.get_by_role("dialog")
    choice = dialog.get_by_role("button", name="Finish")
    expect(choice).to_be_visible()
    line.swallow()
    choice.click()
    print(f"bulk: {says(dialog.get_by_role('alert')):.1f} s")
    expect(dialog.locator(".step.now")).to_have_text("Accepted: not known yet")
    line.plug_in()
    expect(dialog.locator(".step.done")).to_contain_text("Accepted: 1 task")
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    expect(dialog.get_by_role("alert")).to_have_count(0)


def test_a_bulk_whose_answer_is_lost_says_what_it_cancelled(
    console: Console,  # noqa: F811
    workspace: Workspace,
    gate: Gate,
) -> None:
    """The repeat has the key of the first call, and the service answers the first counts."""
    task_id = workspace.begin(gate.command)
    console.find(workspace.id)
    console.page.get_by_role("button", name="Cancel this task…").click()
    dialog = console.page.get_by_role("dialog")
    choice = dialog.get_by_role("button", name=CHOICE)
    expect(choice).to_be_visible()
    answers: dict[str, APIResponse] = {}

    def lose_the_first_answer(route: Route) -> None:
        key = route.request.headers.get("idempotency-key")
        if key is None:
            # The counts of the tasks that still run.
            route.continue_()
        elif key in answers:
            route.fulfill(response=answers[key])
        else:
            answers[key] = route.fetch()
            route.abort()

    console.page.route("**/v1/tasks/cancel", lose_the_first_answer)
    choice.click()
    expect(dialog.locator(".step.done")).to_contain_text("Accepted: 1 task")
    expect(dialog.locator(".step.done").first).not_to_contain_text("already")
    assert len(answers) == 1
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"


def says(note: Locator) -> float:
    """Returns how many seconds the page took to say that a press has no answer."""
    begun = time.monotonic()
    expect(note).to_contain_text(UNKNOWN, timeout=NOTICED_MS)
    return time.monotonic() - begun


def color_of(console: Console) -> str:  # noqa: F811
    return str(console.rows.first.locator(".since time").evaluate("e => getComputedStyle(e).color"))
