"""The commands for emergencies, through Envoy, on the tasks of the other organization."""

import json
import re

import pytest

from tests.support.commands import Run
from tests.support.other_org import OTHER_ORG, begin
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually


@pytest.fixture
def owner(stack: Stack) -> dict[str, str]:
    """The environment in which the commands call as the owner of the other organization."""
    return {
        "EVERSHELL_URL": f"http://{stack.ready['grpc_addr']}",
        "EVERSHELL_API_KEY": stack.tokens[OTHER_ORG],
    }


def test_cancel_all_cancels_what_its_dry_run_shows(
    run: Run, call: Run, owner: dict[str, str], others: list[Workspace]
) -> None:
    begun = begin(others, metadata={"team": "night"})
    (first, second), task_ids = others, [task_id for _, task_id in begun]
    wanted = ("cancel", "--filter", "metadata.team=night")

    dry = run(*wanted, "--dry-run", **owner)

    assert dry.returncode == 0, dry.stderr
    titles, *rows = [line.split() for line in dry.stdout.splitlines()]
    assert titles == ["TASK", "WORKSPACE", "OUTCOME"]
    assert rows == [[task_ids[0], first.id, "matched"], [task_ids[1], second.id, "matched"]]
    assert "2 would be cancelled, 0 had been requested before" in dry.stderr
    shown = json.loads(call(*wanted, "--dry-run", "--json", **owner).stdout)
    assert (shown["matched"], shown["accepted"], shown["remaining"]) == (2, 0, 2)
    assert [each["task_id"] for each in shown["results"]] == task_ids
    for other, task_id in zip(others, task_ids, strict=True):
        assert "cancel_requested_at" not in other.task(task_id)

    mistyped = run(*wanted, typed="3\n", **owner)
    assert (mistyped.returncode, mistyped.stdout) == (5, "")
    assert mistyped.stderr.endswith("Not confirmed. Nothing was cancelled.\n")
    assert "cancel_requested_at" not in first.task(task_ids[0])

    one = call(*wanted, "--filter", f"workspace={second.id}", "--yes", "--json", **owner)
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout)["accepted"] == 1
    assert "cancel_requested_at" not in first.task(task_ids[0])

    done = run(*wanted, "--reason", "gone wrong", typed="2\n", **owner)

    assert done.returncode == 0, done.stderr
    assert "This cancels 2 tasks of your organization." in done.stderr
    assert done.stdout.startswith("accepted: 1 cancellation recorded.\n")
    assert "before     1 had been requested before\n" in done.stdout
    for other, (gate, task_id) in zip(others, begun, strict=True):
        gate.open()
        assert other.await_end(task_id)["status"] == "cancelled"
    assert first.task(task_ids[0])["cancel_reason"] == "gone wrong"
    for late in (call(*wanted, **owner), call(*wanted, "--dry-run", **owner)):
        assert late.returncode == 3
    assert call(*wanted, **owner).stdout.startswith("Nothing runs that matches")


def test_hold_and_release(
    run: Run, call: Run, owner: dict[str, str], others: list[Workspace]
) -> None:
    begun = begin(others)
    first, (_, task_id) = others[0], begun[0]

    held = run("hold", "--reason", "gone wrong", **owner)

    assert (held.returncode, held.stderr) == (0, "")
    org, *lines = held.stdout.splitlines()
    assert re.fullmatch(r"Organization org_\w+ is on hold\.", org)
    assert re.fullmatch(r"  since      \S+Z by \S+", lines[0])
    assert lines[1:] == ["  reason     gone wrong"]
    assert call("hold", "--show", **owner).stdout == held.stdout
    shown = json.loads(call("hold", "--show", "--json", **owner).stdout)
    again = json.loads(call("hold", "--reason", "another", "--json", **owner).stdout)
    assert again["hold"] == shown
    assert (shown["on_hold"], shown["reason"]) == (True, "gone wrong")

    refused = call("submit", first.id, "true", **owner)
    assert (refused.returncode, refused.stdout) == (5, "")
    assert refused.stderr.startswith(f"org_on_hold: {shown['held_by']} put your organization on ")
    as_json = call("submit", first.id, "true", "--json", **owner)
    error = json.loads(as_json.stdout)["error"]
    assert (as_json.returncode, error["code"]) == (5, "org_on_hold")
    assert error["details"]["hold_reason"] == "gone wrong"

    cancelled = run("hold", "--cancel-running", "--reason", "later", typed="2\n", **owner)
    assert cancelled.returncode == 0, cancelled.stderr
    assert "accepted: 2 cancellations recorded.\n" in cancelled.stdout
    assert "  reason     gone wrong\n" in cancelled.stdout
    assert first.task(task_id)["cancel_reason"] == "later"
    for other, (gate, other_task_id) in zip(others, begun, strict=True):
        gate.open()
        assert other.await_end(other_task_id)["status"] == "cancelled"

    released = run("release", **owner)
    assert (released.returncode, released.stderr) == (0, "")
    assert re.fullmatch(r"Organization org_\w+ is not on hold\.\n", released.stdout)
    assert json.loads(call("release", "--json", **owner).stdout)["on_hold"] is False
    eventually(lambda: first.get()["status"] == "idle")
    done = call("submit", first.id, "true", "--wait", "20s", **owner)
    assert done.returncode == 0, done.stderr


def test_submit_with_limits(run: Run, call: Run, workspace: Workspace) -> None:
    limits = ("--max-duration", "1s", "--max-total-tokens", "9", "--force-after", "0s")

    ended = run("submit", workspace.id, "sleep 600", *limits, "--wait", "20s")

    assert ended.returncode == 8, ended.stderr
    (task_id,) = ended.stdout.split()
    assert ended.stderr.startswith("cancelled, 1 iteration completed\n")
    assert "because    max_duration reached: 1 s\n" in ended.stderr
    shown = call("task", workspace.id, task_id)
    assert shown.stdout.startswith(f"task {task_id}: cancelled, forced\n")
    assert "limits     1 s, 9 tokens, interrupted 0 s after a limit\n" in shown.stdout
    assert re.search(r"cancelled  \S+Z by system:limit\n", shown.stdout)
    task = json.loads(call("task", workspace.id, task_id, "--json").stdout)
    assert (task["status"], task["forced"]) == ("cancelled", True)
    assert task["cancel_requested_by"] == "system:limit"
    assert task["limits"] == {
        "max_duration": "1s",
        "max_total_tokens": "9",
        "force_after": "0s",
    }
    within = call("submit", workspace.id, "true", *limits[:2], "--wait", "20s", "--json")
    assert (within.returncode, json.loads(within.stdout)["status"]) == (0, "completed")
