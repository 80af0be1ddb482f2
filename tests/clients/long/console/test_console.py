"""The console at /console in a real browser: sign-in and sign-out, the live list, cancellations."""

import hashlib
import re
import secrets

import pytest
from playwright.sync_api import expect

from tests.clients.console.console_page import Console
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually


def new_key(stack: Stack) -> tuple[str, str]:
    """The id and the secret of a new API key with full access, which expires in 4 minutes."""
    key_id, secret = f"key_{secrets.token_hex(8)}", f"sk_{secrets.token_urlsafe(32)}"
    with stack.database() as connection:
        connection.execute(
            "INSERT INTO api_keys (id, org_id, name, template, sha256, created_at, expires_at) "
            "VALUES (%s, %s, 'test', 'full_access', %s, now(), now() + interval '4 minutes')",
            (key_id, stack.ready["demo"]["org_id"], hashlib.sha256(secret.encode()).digest()),
        )
    return key_id, secret


def expire(stack: Stack, key_id: str) -> None:
    """Lets the key expire. The workers notice a few seconds later."""
    with stack.database() as connection:
        connection.execute("UPDATE api_keys SET expires_at = now() WHERE id = %s", (key_id,))


def test_a_person_cancels_a_task(
    console: Console, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    workspace.begin(gate.command, "touch never")
    console.show(workspace)
    console.cancel(reason="it has gone wrong")

    expect(console.step("Accepted")).to_contain_text(re.compile(r"answered in [\d.]+ m?s"))
    expect(console.step("Accepted")).to_contain_text("reason: it has gone wrong")
    waiting = console.cancellation.locator(".step.now")
    expect(waiting).to_contain_text("Waiting for the tool call in flight")
    assert workspace.log()[-1]["type"] == "task_cancel_requested"

    gate.open()
    after = re.compile(r"[\d.]+ m?s after the request")
    expect(console.step("Iteration 1 has ended")).to_contain_text(after)
    expect(console.step("Cancelled")).to_contain_text(after)
    log = console.log
    expect(log).to_contain_text("Task cancelled")
    expect(log).to_contain_text(f"by API key {workspace.log()[-1]['cancel']['requested_by']}")
    assert not (stack.files(workspace.id) / "never").exists()
    console.check()


def test_a_text_cannot_look_like_another_one(
    console: Console, workspace: Workspace, gate: Gate
) -> None:
    """A character that changes the direction of a text is shown as an escape: in the list, on the
    page of a workspace, and in its log.
    """
    task_id = workspace.begin(f"{gate.command} # \u202e evitcani")
    console.show(workspace)
    expect(console.log).to_contain_text("\\u202e evitcani")
    assert "\u202e" not in console.page.inner_text("body")
    gate.open()
    workspace.await_end(task_id)
    console.check()


def test_a_person_learns_that_the_agent_does_not_answer(
    console: Console, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    workspace.begin(gate.command)
    console.show(workspace)
    with stack.frozen_process(stack.agent_pid(workspace.id)):
        console.cancel()
        note = console.cancellation.get_by_role("alert")
        expect(note).to_contain_text("The agent does not answer.")
        expect(note).to_contain_text("recorded and will be delivered")
        expect(note).to_contain_text(re.compile("agent_unreachable, request [0-9a-f-]{36}"))
        expect(console.step("Accepted")).to_be_visible()
    gate.open()
    expect(console.step("Cancelled")).to_be_visible()
    console.check()


def test_a_person_learns_that_an_iteration_was_lost(
    console: Console, stack: Stack, workspace: Workspace
) -> None:
    """The iteration is lost because the agent is frozen and the service therefore ends its pod."""
    task_id = workspace.begin("sleep 600")
    console.show(workspace)
    with stack.frozen_process(stack.agent_pid(workspace.id)):
        console.cancel(choice="Stop now")
        assert workspace.await_end(task_id)["iteration_lost"]
    lost = console.cancellation.locator(".step.lost")
    expect(lost).to_contain_text("The iteration was lost with its agent")
    expect(lost).to_contain_text("What it had done is not recorded.")
    expect(console.step("Cancelled, interrupted")).to_be_visible()
    expect(console.cancellation).not_to_contain_text("No iteration was in flight")
    # Notes that no longer hold disappear.
    expect(console.cancellation.get_by_role("alert")).to_have_count(0)
    console.check()


def test_a_missing_event_is_no_conclusion(
    console: Console, workspace: Workspace, gate: Gate
) -> None:
    """The log does not arrive. The page does not say what only the log can tell."""
    workspace.begin(gate.command)
    console.page.route("**/workspaces/*/events", lambda route: route.abort())
    console.show(workspace)
    console.cancel()
    gate.open()
    expect(console.cancellation).to_contain_text("Not known here: how the iteration ended")
    expect(console.cancellation).not_to_contain_text("No iteration was in flight")
    console.page.unroute("**/workspaces/*/events")
    expect(console.step("Iteration 1 has ended")).to_be_visible()


@pytest.mark.soak
def test_a_person_interrupts_an_iteration(console: Console, workspace: Workspace) -> None:
    task_id = workspace.begin("sleep 600")
    console.show(workspace)
    console.cancel(choice="Stop now")
    expect(console.step("Iteration 1 has ended")).to_contain_text("interrupted")
    expect(console.step("Cancelled, interrupted")).to_be_visible()
    assert workspace.await_end(task_id)["forced"]
    console.check()


@pytest.mark.soak
def test_nothing_is_left_after_sign_out(console: Console, workspace: Workspace) -> None:
    console.show(workspace)
    console.page.get_by_role("button", name="Sign out").click()
    expect(console.page.get_by_label("API key or session token")).to_have_value("")
    assert workspace.id not in console.page.url
    assert workspace.id not in console.page.content()


def test_a_rejected_token_is_explained(console: Console, stack: Stack) -> None:
    console.sign_in(stack.tokens["expired"])
    note = console.page.get_by_role("alert")
    expect(note).to_contain_text(re.compile("Error unauthenticated, request [0-9a-f-]{36}"))
    console.sign_in("a token\u2014with a dash")
    expect(note).to_contain_text("validation_error")
    console.sign_in(stack.tokens["member"])
    expect(console.page.get_by_role("grid")).to_be_visible()
    console.check()


def test_a_token_that_expires_is_asked_for_again(
    console: Console, stack: Stack, workspace: Workspace
) -> None:
    key_id, secret = new_key(stack)
    console.sign_in(secret)
    console.open(workspace.id)
    note = console.page.get_by_role("region", name="Token")
    expect(note).to_contain_text("Your token expires at")
    expire(stack, key_id)
    dialog = console.page.get_by_role("dialog")
    expect(dialog).to_contain_text("You are no longer signed in.")
    console.sign_in(stack.tokens["full_access"])
    expect(dialog).to_be_hidden()
    expect(note).to_be_hidden()
    # The user is on the same page as before.
    workspace.submit("echo hello")
    expect(console.log).to_contain_text("Task completed")
    console.check()


@pytest.mark.soak
def test_a_read_only_token_cannot_cancel(
    console: Console, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    workspace.begin(gate.command)
    console.sign_in(stack.tokens["read_only"])
    console.open(workspace.id)
    expect(console.page.get_by_role("group", name="Now")).to_be_visible()
    expect(console.page.get_by_role("button", name="Cancel")).to_have_count(0)
    gate.open()


@pytest.mark.soak
def test_the_list_is_live(console: Console, stack: Stack, workspace: Workspace, gate: Gate) -> None:
    console.sign_in(stack.tokens["full_access"])
    console.find(workspace.id)
    row = console.page.locator(".rows .row")
    expect(row.locator(".status")).to_have_text("idle")
    workspace.submit("echo first", gate.command)
    expect(row.locator(".status")).to_have_text("running")
    expect(row.locator(".task")).to_have_text("echo first")
    expect(row.locator(".iterations")).to_have_text("2")
    expect(row.locator(".phase")).to_have_text("tool call")
    expect(row.locator(".since")).to_have_text(re.compile(r"\d+ s"))
    gate.open()
    expect(row.locator(".status")).to_have_text("idle")


def test_a_long_log_begins_near_its_end(console: Console, workspace: Workspace, gate: Gate) -> None:
    outputs = [f"head -c 60000 /dev/zero | tr '\\0' {each}" for each in "abcdefghij" * 6]
    task_id = workspace.submit(*outputs, gate.command)
    eventually(lambda: workspace.task(task_id)["iterations"] == len(outputs))
    console.show(workspace)
    now = console.page.get_by_role("group", name="Now")
    expect(now).to_contain_text(f"Iteration {len(outputs) + 1}: tool call")
    entries = console.log.locator(".entry")
    expect(entries.first).to_contain_text(f"Iteration {len(outputs)} completed")
    # Leaves out the stream, which has begun after the newest event.
    sizes = console.page.evaluate(
        "id => performance.getEntriesByType('resource').filter(({ name }) => name.includes(id))"
        ".map(({ encodedBodySize }) => encodedBodySize)",
        workspace.id,
    )
    assert 0 < sum(sizes) < 200_000, sizes

    # An output is read when it is unfolded.
    output = entries.first.locator("details")
    output.locator("summary").click()
    expect(output.locator("pre")).to_have_text("j" * 60_000)
    # Older events are read when the person asks for them.
    older = console.log.get_by_role("button", name="Load older events")
    while older.count():
        shown = entries.count()
        older.click()
        expect(entries).not_to_have_count(shown)
    assert entries.count() == len(workspace.log())
    expect(entries.last).to_contain_text("Workspace provisioned")
    gate.open()
    expect(entries.first).to_contain_text("Task completed")
    console.check()
