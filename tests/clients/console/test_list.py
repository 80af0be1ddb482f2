"""The list: workspaces with problems come first, and only the listed tasks are cancelled."""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.clients.console.console_page import Console
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually


class Named:
    """Workspaces whose names begin with the same text, by which a test filters the list."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.stack = stack
        self.name = name
        self.made: list[Workspace] = []

    def make(self, name: str) -> Workspace:
        made = Workspace(self.stack, name=f"{self.name}-{name}")
        self.made.append(made)
        return made

    def busy(self, name: str, about: str = "", **fields: object) -> tuple[Workspace, str]:
        """A workspace with a task that runs until its gate opens, and the id of the task."""
        made = self.make(name)
        return made, made.begin(f"{Gate(made).command} # {about}", **fields)


@pytest.fixture
def named(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Named]:
    found = Named(stack, request.node.name.removeprefix("test_")[:20])
    yield found
    for each in found.made:
        each.rest.call("POST", f"{each.path}/stop")


# What can be clicked, with its size: a whole row is a link, and a whole cell a checkbox.
CLICKABLE = """
  () => [...document.querySelectorAll("button, a, input, select, summary")]
    .filter((each) => each.offsetParent)
    .map((each) => each.closest(".grid .check, .row, label.check") ?? each)
    .map((each) => [each.outerHTML, each.getBoundingClientRect()])
    .map(([html, { width, height }]) => [html, Math.min(width, height)])
"""


@pytest.mark.parametrize(("width", "least"), [(360, 44), (1280, 24)])
def test_everything_is_large_enough_to_click(
    browser: Browser, stack: Stack, workspace: Workspace, gate: Gate, width: int, least: int
) -> None:
    console = Console(browser, stack.ready["rest_url"], width=width)
    workspace.begin("true", gate.command)
    console.show(workspace)
    expect(console.log.locator(".entry").first).to_be_visible()
    for page in (f"workspaces/{workspace.id}", "stop", "last-hour", ""):
        console.page.goto(f"{console.origin}/console#/{page}")
        expect(console.page.get_by_role("button").nth(1)).to_be_visible()
        sizes = console.page.evaluate(CLICKABLE)
        assert [each for each in sizes if each[1] < least] == []
    top = console.page.locator(".grid").bounding_box()
    assert top and (width > 360 or top["y"] <= 96)
    gate.open()
    console.close()


def names(console: Console) -> list[str]:
    return [each.rpartition("-")[2] for each in console.rows.locator(".name").all_inner_texts()]


def test_what_is_wrong_is_first(console: Console, stack: Stack, named: Named) -> None:
    named.make("idle")
    named.busy("oldest")
    named.busy("newest")
    named.busy("limit", limits={"max_duration": "0.1s"})
    late, late_id = named.busy("late")
    failed = named.make("failed")
    late.cancel()
    with stack.database() as connection:
        changed = "cancel_requested_at = now() - interval '1 minute', cost_nanos = 1_500_000_000"
        connection.execute(f"UPDATE tasks SET {changed} WHERE id = %s", (late_id,))
    stack.kill(stack.agent_pid(failed.id))
    failed.await_status("failed")
    console.sign_in(stack.tokens["full_access"])
    console.find(named.name)

    wanted = ["failed", "late", "limit", "oldest", "newest", "idle"]
    expect(console.rows.nth(1).locator(".badge")).to_contain_text("cancelling 1 min")
    expect(console.rows.nth(1).locator(".cost")).to_have_text("$1.50")
    expect(console.rows.nth(2).locator(".badge")).to_have_text("over its limit")
    eventually(lambda: names(console) == wanted, 30)
    # A chip filters the list for the workspaces with the chip's problem.
    console.page.get_by_role("button", name="cancelling too long").click()
    expect(console.rows).to_have_count(1)
    assert names(console) == ["late"]
    # The list reads all tasks with one call.
    assert not [each.url for each in console.requests if "/tasks/" in each.url]


def test_a_press_cancels_the_tasks_that_were_shown(
    console: Console, stack: Stack, named: Named
) -> None:
    shown = dict(named.busy(each) for each in ("one", "two"))
    later = named.make("later")
    console.sign_in(stack.tokens["full_access"])
    console.find(named.name)
    console.page.get_by_role("button", name="Cancel these 2…").click()
    dialog = console.page.get_by_role("dialog", name="Cancel 2 tasks")
    tasks = dialog.get_by_role("list", name="Tasks").get_by_role("listitem")
    expect(tasks).to_contain_text([f"{named.name}-one", f"{named.name}-two"])
    # A task that begins now is reported, but not cancelled.
    later_id = later.begin(Gate(later).command)
    expect(dialog).to_contain_text("1 task began since, and will not be cancelled")
    with console.page.expect_request("**/v1/tasks/cancel") as sent:
        dialog.get_by_role("button", name="Finish").click()
    body = json.loads(sent.value.post_data or "")
    assert set(body["filter"]["task_ids"]) == set(shown.values())

    expect(dialog.locator(".step.done")).to_contain_text("Accepted: 2 tasks")
    for workspace, task_id in shown.items():
        Gate(workspace).open()
        assert workspace.await_end(task_id)["status"] == "cancelled"
    expect(dialog.locator(".step.done").filter(has_text="All ended")).to_be_visible()
    assert "cancel_requested_at" not in later.task(later_id)
    console.check()


def test_a_selection_is_cancelled(console: Console, stack: Stack, named: Named) -> None:
    chosen, task_id = named.busy("chosen")
    other, other_id = named.busy("other")
    console.sign_in(stack.tokens["full_access"])
    console.find(named.name)
    console.page.get_by_role("checkbox", name=f"Select {named.name}-chosen").check()
    # The workspace stays selected when the list no longer shows it.
    console.find(f"{named.name}-other")
    console.page.get_by_role("button", name="Cancel this task…").click()
    dialog = console.page.get_by_role("dialog", name="Cancel 1 task")
    dialog.get_by_role("button", name="Stop now").click()
    assert chosen.await_end(task_id)["forced"]
    expect(dialog.locator(".step.done").filter(has_text="All ended")).to_be_visible()
    assert "cancel_requested_at" not in other.task(other_id)


def test_only_changed_workspaces_are_read_again(
    console: Console, stack: Stack, named: Named
) -> None:
    changing, resting = named.make("changing"), named.make("resting")
    console.sign_in(stack.tokens["full_access"])
    console.find(named.name)
    console.await_list()
    expect(console.rows).to_have_count(2)
    whole = console.whole_list_calls()
    assert len(whole) == 2
    begun = changing.begin(f"{Gate(changing).command} # seen")
    expect(console.rows.filter(has_text="# seen").locator(".badge")).to_have_text("running")
    # The phase of an iteration changes without an event.
    expect(console.rows.filter(has_text="# seen").locator(".phase")).to_have_text("tool call")
    Gate(changing).open()
    changing.await_end(begun)
    expect(console.rows.filter(has_text="# seen")).to_have_count(0)
    # A new workspace appears, and one that is deleted is removed.
    later, _ = named.busy("later")
    expect(console.rows).to_have_count(3)
    later.rest.call("DELETE", later.path)
    expect(console.rows.locator(".badge.cancelling")).to_have_count(1)
    Gate(later).open()
    expect(console.rows).to_have_count(2)
    assert console.whole_list_calls() == whole
    assert not [url for url in console.list_calls() if resting.id in url]
    console.check()


def test_the_whole_list_is_read_again_each_minute(
    console: Console, stack: Stack, named: Named
) -> None:
    """No event says that a workspace was created or deleted."""
    console.sign_in(stack.tokens["full_access"])
    console.find(named.name)
    console.await_list()
    with stack.database() as connection:
        connection.execute(
            "INSERT INTO workspaces (id, org_id, name, status, status_reason, created_at,"
            " updated_at, epoch, last_seq) VALUES ('ws_unseen', 'org_demo', %s, 'stopped', '',"
            " now(), now(), 1, 0)",
            (f"{named.name}-unseen",),
        )
        console.pass_minute()
        expect(console.rows).to_have_count(1)
        connection.execute("DELETE FROM workspaces WHERE id = 'ws_unseen'")
        console.pass_minute()
        expect(console.rows).to_have_count(0)
    console.check()


def test_six_keys_cancel_a_task(console: Console, stack: Stack, named: Named) -> None:
    """The keys find the task, open its workspace, cancel the task, and show its end."""
    workspace, task_id = named.busy("crm", about="Mail our customers")
    console.sign_in(stack.tokens["full_access"])
    page, keyboard = console.page, console.page.keyboard
    expect(page.get_by_role("searchbox")).to_be_focused()
    expect(console.rows.filter(has_text="Mail our customers")).to_have_count(1)
    pressed = ["m", "a", "i", "Enter", "c", "Enter"]
    for key in pressed[:4]:
        keyboard.press(key)
    expect(page.get_by_role("button", name="Cancel this task")).to_be_visible()
    keyboard.press(pressed[4])
    expect(page.get_by_role("button", name="Finish")).to_be_focused()
    keyboard.press(pressed[5])
    expect(console.step("Accepted")).to_be_visible()
    Gate(workspace).open()
    expect(console.step("Cancelled")).to_be_visible()
    assert workspace.await_end(task_id)["status"] == "cancelled"


def test_keys_cancel_the_row_in_focus(console: Console, stack: Stack, named: Named) -> None:
    _, other_id = named.busy("first")
    workspace, task_id = named.busy("second")
    console.sign_in(stack.tokens["full_access"])
    page, keyboard = console.page, console.page.keyboard
    keyboard.press("/")
    console.find(named.name)
    expect(console.rows).to_have_count(2)
    for key in ("ArrowDown", "ArrowDown", "Space"):
        keyboard.press(key)
    expect(console.rows.nth(1)).to_be_focused()
    expect(console.rows.nth(1)).to_have_attribute("aria-selected", "true")
    keyboard.press("c")
    expect(page.get_by_role("button", name="Finish")).to_be_focused()
    keyboard.press("Enter")
    expect(page.locator(".step.done")).to_contain_text("Accepted: 1 task")
    Gate(workspace).open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    assert "cancel_requested_at" not in named.made[0].task(other_id)


# Notes the position of the first row in each frame.
WATCH = """
  window.tops = new Set();
  const watch = () => {
    tops.add(document.querySelector(".rows .row").getBoundingClientRect().top);
    requestAnimationFrame(watch);
  };
  watch();
"""


def test_a_failing_call_moves_nothing(console: Console, stack: Stack, named: Named) -> None:
    """One read fails, and the others succeed. The page says so all the time, and no row moves."""
    named.busy("busy")
    console.sign_in(stack.tokens["full_access"])
    console.find(named.name)
    console.await_list()
    expect(console.rows).to_have_count(1)
    console.page.evaluate(WATCH)
    refusal = '{"error": {"code": "internal", "message": "no", "request_id": "r1"}}'
    console.page.route("**/v1/tasks?*", lambda route: route.fulfill(status=500, body=refusal))
    expect(console.health).to_contain_text("internal for 12 s")
    console.health.locator("summary").click()
    expect(console.health).to_contain_text("Not up to date: the rows in view.")
    console.page.unroute("**/v1/tasks?*")
    expect(console.health).to_contain_text("live, ")
    # The number of rows has its place below them.
    console.page.get_by_role("checkbox", name=f"Select {named.name}-busy").check()
    expect(console.page.get_by_role("button", name="Cancel this task…")).to_be_visible()
    assert console.page.evaluate("tops.size") == 1


def is_chosen(chip: Locator) -> bool:
    """Returns whether the chip is chosen. If not, taps it. The tap may miss a chip that moves."""
    chosen = chip.get_attribute("aria-pressed") == "true"
    if not chosen:
        chip.tap()
    return chosen


def test_four_taps_cancel_a_task(browser: Browser, stack: Stack, named: Named) -> None:
    workspace, task_id = named.busy("crm", about="Mail our customers")
    console = Console(browser, stack.ready["rest_url"], "dark", 400, has_touch=True)
    console.sign_in(stack.tokens["full_access"])
    page, row = console.page, console.rows.filter(has_text="Mail our customers")
    # While the list reads the tasks, chips for problems appear and move the other chips.
    expect(row).to_be_visible()
    eventually(lambda: is_chosen(page.get_by_role("button", name="running")))
    row.locator(".task").tap()
    page.get_by_role("button", name="Cancel this task").tap()
    page.get_by_role("button", name="Finish").tap()
    expect(console.step("Accepted")).to_be_visible()
    Gate(workspace).open()
    expect(console.step("Cancelled")).to_be_visible()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    console.check()
    console.close()
