"""The page of the last hour, and the reason why a credential has no button that cancels."""

import pytest
from playwright.sync_api import Locator, expect

from tests.clients.console.console_page import Console
from tests.support.stack import Gate, Stack, Workspace


def entry(console: Console, *texts: str) -> Locator:
    """The entries of the page that have all of the texts."""
    found = console.page.get_by_role("listitem").filter(has=console.page.get_by_role("time"))
    for text in texts:
        found = found.filter(has_text=text)
    return found


def open_last_hour(console: Console, find: str) -> None:
    console.page.get_by_role("link", name="Last hour").click()
    expect(console.page.get_by_role("heading", name="The last hour")).to_be_focused()
    console.find(find)


def test_the_last_hour_says_what_failed_and_who_cancelled(
    console: Console, stack: Stack, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    one, lost = Workspace(stack, name=f"{name}-one"), Workspace(stack, name=f"{name}-lost")
    failed = one.submit("fail: the disk is full")
    one.await_end(failed)
    old = one.submit("fail: long ago")
    one.await_end(old)
    with stack.database() as connection:
        connection.execute(
            "UPDATE tasks SET completed_at = now() - interval '2 hours' WHERE id = %s", (old,)
        )
    cancelled = one.begin("sleep 600")
    one.cancel(reason="the wrong branch", force_after="0s")
    one.await_end(cancelled)
    task_of_lost = lost.begin("sleep 600 # lost")
    stack.kill(stack.agent_pid(lost.id))
    lost.await_status("failed")

    console.sign_in(stack.tokens["full_access"])
    open_last_hour(console, name)
    entries = entry(console)
    expect(entry(console, "failed", f"{name}-one", "the disk is full")).to_have_count(1)
    expect(entry(console, "cancelled", "by you", "the wrong branch")).to_have_count(1)
    # A workspace that failed with its task has one entry.
    expect(entry(console, "failed", f"{name}-lost", "sleep 600 # lost")).to_have_count(1)
    expect(entries).to_have_count(3)
    console.page.get_by_role("button", name="failed").click()
    expect(entries).to_have_count(2)
    console.page.get_by_role("button", name="all").click()

    # The page follows what happens. A running cancellation is an entry too.
    gate = Gate(one)
    running = one.begin(gate.command)
    one.cancel()
    expect(entry(console, "cancelling", gate.command)).to_have_count(1)
    gate.open()
    one.await_end(running)
    expect(entry(console, "cancelled", gate.command)).to_have_count(1)
    # The audit log alone knows who deleted a workspace.
    one.rest.call("DELETE", one.path)
    console.find(one.id)
    expect(entry(console, "delete workspace", "by you")).to_have_count(1)
    console.find(task_of_lost)
    expect(entries).to_have_count(1)
    console.check()


def test_a_credential_is_told_what_it_lacks(
    console: Console, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    workspace.begin(gate.command)
    page = console.page
    console.sign_in(stack.tokens["read_only"])
    console.find(workspace.id)
    reason = page.get_by_text("Your key may not cancel: it lacks workspace:write.")
    expect(reason).to_be_visible()
    console.open(workspace.id)
    expect(reason).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    page.get_by_role("link", name="All workspaces").click()
    console.page.get_by_role("button", name="Sign out").click()

    console.sign_in(stack.tokens["member"])
    open_last_hour(console, "")
    expect(page.get_by_text("Your sign-in may not read the audit log")).to_be_visible()
    expect(page.get_by_role("main")).not_to_contain_text("and the audit log")
    gate.open()
