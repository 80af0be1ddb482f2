"""The page that stops everything offers only what the credential permits."""

import re

from playwright.sync_api import expect

from tests.clients.console.console_page import Console
from tests.support.stack import Gate, Stack, Workspace


def test_an_api_key_stops_everything(
    console: Console, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.begin(f"{gate.command} # nightly")
    console.sign_in(stack.tokens["full_access"])
    page = console.page
    page.get_by_role("link", name="Stop everything").click()
    who = page.get_by_role("main")
    expect(who).to_contain_text(f"You use the API key {workspace.task(task_id)['submitted_by']}")
    expect(who).to_contain_text(f"of the organization {stack.ready['demo']['org_id']}")
    expect(who).to_contain_text("the scope org:hold, which no API key has")
    expect(page.get_by_role("checkbox")).to_have_count(0)

    number = page.get_by_label("Type the number of tasks")
    found = re.search(r"\((\d+)\)", page.get_by_text("Type the number of tasks").inner_text())
    assert found
    tasks = int(found[1])
    number.fill(str(tasks + 1))
    choice = page.get_by_role("button", name="Finish")
    choice.click()
    expect(page.get_by_role("alert")).to_contain_text(f"{tasks + 1} is not the number of tasks")
    expect(number).to_be_focused()
    assert "cancel_requested_at" not in workspace.task(task_id)

    number.fill(str(tasks))
    choice.click()
    expect(page.locator(".step.done").filter(has_text="Accepted")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="cat gate # nightly")).to_be_visible()
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    console.check()


def test_a_credential_that_may_not_cancel_is_offered_nothing(
    console: Console, stack: Stack
) -> None:
    console.sign_in(stack.tokens["read_only"])
    console.page.get_by_role("link", name="Stop everything").click()
    expect(console.page.get_by_role("main")).to_contain_text("You may not cancel tasks")
    expect(console.page.get_by_role("main").get_by_role("button")).to_have_count(0)
