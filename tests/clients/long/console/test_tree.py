"""The tree of a task in the console, and the button on each of its tasks."""

from playwright.sync_api import expect

from tests.clients.console.console_page import Console
from tests.support.stack import Stack, Workspace


def test_a_person_cancels_a_task_with_its_descendants(
    console: Console, stack: Stack, workspace: Workspace
) -> None:
    below = Workspace(stack)
    root_id = workspace.submit("sleep 301")
    child_id = below.submit("sleep 302", parent_task_id=root_id)
    below.await_phase(child_id, "tool_call")
    console.show(workspace)
    tree = console.page.get_by_role("region", name="Tree")
    expect(tree.get_by_role("link")).to_have_text(["sleep 301", "sleep 302"])
    expect(tree.get_by_role("listitem").get_by_role("listitem")).to_contain_text("sleep 302")

    tree.get_by_role("button", name="Cancel this task and 1 below it: sleep 301").click()
    dialog = console.page.get_by_role("dialog", name="Cancel this task and 1 below it: “sleep 301”")
    dialog.get_by_label("Reason").fill("gone wrong")
    dialog.get_by_role("button", name="Stop now").click()
    assert workspace.await_end(root_id)["status"] == "cancelled"
    end = below.await_end(child_id)
    assert (end["status"], end["cancel"]["reason"]) == ("cancelled", "gone wrong")
    expect(tree.locator(".badge")).to_have_text(["cancelled", "cancelled"])
    expect(tree.get_by_role("button")).to_have_count(0)
    console.check()
    below.rest.post(f"{below.path}/stop")
