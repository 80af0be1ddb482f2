"""A person stops everything, holds the organization, and releases it."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import APIResponse, Route, expect

from tests.clients.console.console_page import Console
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

TASKS = 3


@pytest.fixture
def released(stack: Stack) -> Iterator[None]:
    """Releases the organization after the test."""
    yield
    stack.rest("owner").post("/v1/hold/release", status=200)


@pytest.fixture
def running(stack: Stack) -> Iterator[dict[str, Workspace]]:
    """The workspaces of the running tasks, by task id. Each task runs until its gate opens."""
    path = "/v1/tasks/cancel"
    # Ends the tasks that earlier tests have left running. They could end by themselves between the
    # page's count and its cancellation.
    stack.rest().post(path, {"all": True, "force_after": "0s"})
    eventually(lambda: stack.rest().post(path, {"all": True, "dry_run": True})["matched"] == 0, 30)
    made = [Workspace(stack) for _ in range(TASKS)]
    found = {each.submit(Gate(each).command, "touch never"): each for each in made}
    for task_id, each in found.items():
        each.await_phase(task_id, "tool_call")
    yield found
    for each in made:
        stack.rest().call("POST", f"{each.path}/stop")


def count(console: Console) -> int:
    """Opens the page, and reads the number of tasks that the page asks the user to type."""
    console.page.get_by_role("link", name="Stop everything").click()
    field = console.page.get_by_label(re.compile("Type the number of tasks"))
    expect(field).to_be_visible()
    label = console.page.get_by_text(re.compile("Type the number of tasks")).inner_text()
    found = re.search(r"\((\d+)\)", label)
    assert found
    return int(found[1])


def confirm(console: Console, typed: str) -> None:
    console.page.get_by_label(re.compile("Type the number of tasks")).fill(typed)


def test_a_person_stops_everything(
    console: Console, stack: Stack, running: dict[str, Workspace], released: None
) -> None:
    page = console.page
    console.sign_in(stack.tokens["owner"])
    tasks = count(console)
    assert tasks == TASKS
    page.get_by_label("Reason").fill("forty have gone wrong")
    confirm(console, str(tasks))
    page.get_by_role("button", name="Finish").click()

    done = page.locator(".step.done")
    expect(done.filter(has_text="On hold")).to_be_visible()
    expect(done.filter(has_text=f"Accepted: {tasks} tasks")).to_contain_text(
        re.compile(r"\d\.\d s")
    )
    expect(page.locator(".step.now")).to_contain_text("still in an iteration")
    banner = page.get_by_role("region", name="Hold")
    expect(banner).to_contain_text("by user_owner: forty have gone wrong")
    refused = stack.rest().fails("POST", "/v1/workspaces", json={"name": "late"})
    assert (refused.status, refused.slug) == (409, "org_on_hold")
    for each in running.values():
        Gate(each).open()
    for task_id, each in running.items():
        end = each.await_end(task_id)
        assert (end["status"], end["cancel"]["reason"]) == ("cancelled", "forty have gone wrong")
        assert not (stack.files(each.id) / "never").exists()
    expect(done.filter(has_text="All ended")).to_be_visible()

    banner.get_by_role("button", name="Release…").click()
    page.get_by_role("dialog").get_by_role("button", name="Release").click()
    expect(banner).to_be_hidden()
    console.check()


@pytest.mark.soak
def test_a_person_interrupts_everything(
    console: Console, stack: Stack, running: dict[str, Workspace]
) -> None:
    page = console.page
    console.sign_in(stack.tokens["full_access"])
    tasks = count(console)
    confirm(console, str(tasks))
    page.get_by_role("button", name="Finish").click()
    page.get_by_role("button", name="Stop them all now").click()
    expect(page.locator(".step.done").filter(has_text="All ended")).to_be_visible()
    assert all(each.await_end(task_id)["forced"] for task_id, each in running.items())
    assert not stack.rest().get("/v1/hold")["on_hold"]
    console.check()


@pytest.mark.soak
def test_a_hold_that_fails_cancels_nothing(
    console: Console, stack: Stack, running: dict[str, Workspace]
) -> None:
    """After the refusal, the page shows the error, and no step is shown as in progress."""
    page = console.page
    console.sign_in(stack.tokens["owner"])
    refusal = '{"error": {"code": "permission_denied", "message": "no", "request_id": "r1"}}'
    page.route("**/v1/hold", lambda route: route.fulfill(status=403, body=refusal))
    confirm(console, str(count(console)))
    page.get_by_role("button", name="Finish").click()
    note = page.get_by_role("main").get_by_role("alert")
    expect(note).to_contain_text("The organization is not on hold, and nothing was cancelled.")
    expect(note).to_contain_text("permission_denied, request r1")
    expect(page.locator(".step.refused")).to_contain_text("On hold: new tasks are refused")
    expect(page.locator(".step.now")).to_have_count(0)
    assert not any("cancel_requested_at" in each.task(name) for name, each in running.items())
    page.get_by_role("button", name="Cancel the tasks without a hold").click()
    expect(page.locator(".step.done").filter(has_text="Accepted")).to_be_visible()
    for task_id, each in running.items():
        Gate(each).open()
        assert each.await_end(task_id)["status"] == "cancelled"
    console.check()


@pytest.mark.soak
def test_a_read_that_began_before_a_release_does_not_bring_the_hold_back(
    console: Console, stack: Stack, released: None
) -> None:
    page = console.page
    stack.rest("owner").post("/v1/hold", {"reason": "stop"}, status=200)
    console.sign_in(stack.tokens["owner"])
    banner = page.get_by_role("region", name="Hold")
    expect(banner).to_be_visible()
    late: list[tuple[Route, APIResponse]] = []
    page.route("**/v1/hold", lambda route: late.append((route, route.fetch())))
    # Playwright runs the handler only during another call to Playwright, here page.title().
    eventually(lambda: page.title() and late, 30)
    banner.get_by_role("button", name="Release…").click()
    page.get_by_role("dialog").get_by_role("button", name="Release").click()
    expect(banner).to_be_hidden()
    ((route, answer),) = late
    assert answer.json()["on_hold"]
    with page.expect_response("**/v1/hold") as read:
        route.fulfill(response=answer)
    read.value.finished()
    page.evaluate("() => new Promise((done) => setTimeout(done))")
    assert not banner.is_visible()
