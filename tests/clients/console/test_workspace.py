"""The page of a workspace: what runs, the log, and the buttons that interrupt and resume."""

import re

from playwright.sync_api import Browser, expect

from tests.clients.console.console_page import Console
from tests.support.stack import Gate, Stack, Workspace

# The clock of the browser is 60 s behind.
BEHIND = """
const now = Date.now.bind(Date);
Date.now = () => now() - 60_000;
"""


def test_times_are_those_of_the_service(
    browser: Browser, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    workspace.begin(gate.command)
    console = Console(browser, stack.ready["rest_url"], script=BEHIND)
    console.show(workspace)
    fact = console.page.get_by_role("group", name="Now")
    expect(fact).to_contain_text(re.compile(r"Iteration 1: tool call, for \d+ s"))
    expect(fact).not_to_contain_text("for 0 s")
    console.cancel()
    waiting = console.cancellation.locator(".step.now")
    expect(waiting).to_contain_text(re.compile(r"in flight [\d.]+ m?s"))
    # The shown time must also advance.
    expect(waiting).to_contain_text(re.compile(r"in flight [1-9]\d*\.\d s"))
    gate.open()
    expect(console.step("Cancelled")).to_be_visible()
    console.close()


def test_an_iteration_is_interrupted_at_once(
    console: Console, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.begin(gate.command)
    console.show(workspace)
    badges = console.page.locator(".badge")
    expect(badges).to_have_text(["running", "running"])
    expect(console.page.get_by_role("term").filter(has_text="Cost")).to_be_visible()
    console.cancel()
    expect(badges).to_have_text(["cancelling", "cancelling"])
    # The page does not offer a second cancellation.
    expect(console.page.get_by_role("button", name=re.compile("^Cancel"))).to_have_count(0)
    console.cancellation.get_by_role("button", name="Stop now").click()
    expect(console.step("Cancelled, interrupted")).to_be_visible()
    assert workspace.await_end(task_id)["forced"]


def test_the_log_has_the_current_task_first(
    console: Console, workspace: Workspace, gate: Gate
) -> None:
    workspace.await_end(workspace.submit("echo before"))
    workspace.begin("seq 1 9", f"echo going; seq 1 99; {gate.command}")
    console.show(workspace)
    log = console.log
    expect(log.locator("summary > strong")).to_have_text(["seq 1 9", "echo before"])
    expect(log.locator(".entry .headline strong")).to_have_text(
        ["Iteration 1 completed", "Task started", "Task submitted", "Workspace provisioned"]
    )
    # The page shows the running command and its output so far, scrolled to the end.
    now = console.page.get_by_role("group", name="Now")
    expect(now).to_contain_text("Iteration 2: tool call")
    expect(now.locator("code")).to_contain_text("$ echo going; seq 1 99;")
    expect(now.locator("p").last).to_contain_text(re.compile(r", for [1-9]\d* s"))
    expect(now.locator("pre")).to_have_text(re.compile(r"^going\n1\n.*\n99\s*$", re.DOTALL))
    assert now.locator("pre").evaluate(
        "pre => pre.scrollTop > 0 && pre.scrollTop + pre.clientHeight + 4 >= pre.scrollHeight"
    )
    # If the service cannot say what runs, the page shows only the phase.
    console.page.route("**/iteration", lambda route: route.abort())
    expect(now.locator("pre")).to_have_count(0)
    expect(now).to_contain_text("Iteration 2: tool call")
    log.get_by_text("echo before").first.click()
    expect(log.locator(".entry").filter(has_text="Task completed")).to_be_visible()
    gate.open()


def test_a_failed_workspace_is_resumed(
    console: Console, stack: Stack, workspace: Workspace
) -> None:
    stack.kill(stack.agent_pid(workspace.id))
    workspace.await_status("failed")
    console.show(workspace)
    console.page.get_by_role("button", name="Resume").click()
    workspace.await_status("idle")
    expect(console.page.get_by_role("button", name="Resume")).to_have_count(0)
    console.check()
