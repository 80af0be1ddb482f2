"""The commands that cancel many tasks, through Envoy, for tasks of a second organization."""

import json

import pytest

from tests.support.commands import Run
from tests.support.other_org import OTHER_ORG, begin
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually


@pytest.fixture
def owner(stack: Stack) -> dict[str, str]:
    """The variables with which the commands call as the owner of the second organization."""
    return {
        "EVERSHELL_URL": f"http://{stack.ready['grpc_addr']}",
        "EVERSHELL_API_KEY": stack.tokens[OTHER_ORG],
    }


def test_cancel_all_cancels_what_its_dry_run_shows(
    call: Run, owner: dict[str, str], others: list[Workspace]
) -> None:
    begun = begin(others, metadata={"team": "night"})
    wanted = ("cancel", "--filter", "metadata.team=night")

    dry = call(*wanted, "--dry-run", **owner)

    assert dry.returncode == 0, dry.stderr
    titles, *rows = [line.split() for line in dry.stdout.splitlines()]
    assert titles == ["TASK", "WORKSPACE", "OUTCOME"]
    assert rows == [
        [task_id, other.id, "matched"] for other, (_, task_id) in zip(others, begun, strict=True)
    ]
    mistyped = call(*wanted, typed="3\n", **owner)
    assert (mistyped.returncode, mistyped.stdout) == (5, "")
    for other, (_, task_id) in zip(others, begun, strict=True):
        assert "cancel_requested_at" not in other.task(task_id)

    done = call(*wanted, "--reason", "gone wrong", typed="2\n", **owner)

    assert done.returncode == 0, done.stderr
    assert "This cancels 2 tasks of your organization." in done.stderr
    assert done.stdout.startswith("accepted: 2 cancellations recorded.\n")
    for other, (gate, task_id) in zip(others, begun, strict=True):
        gate.open()
        assert other.await_end(task_id)["cancel"]["reason"] == "gone wrong"
    late = call(*wanted, **owner)
    assert (late.returncode, "Nothing runs that matches" in late.stdout) == (3, True)


def test_hold_and_release(call: Run, owner: dict[str, str], others: list[Workspace]) -> None:
    begun = begin(others)
    first, (_, task_id) = others[0], begun[0]

    held = call("hold", "--reason", "gone wrong", **owner)

    assert (held.returncode, held.stderr) == (0, "")
    assert "is on hold." in held.stdout and "reason        gone wrong\n" in held.stdout
    assert call("hold", "--show", **owner).stdout == held.stdout
    refused = call("submit", first.id, "true", "--json", **owner)
    error = json.loads(refused.stdout)["error"]
    assert (refused.returncode, error["code"]) == (5, "org_on_hold")
    assert error["details"]["hold_reason"] == "gone wrong"

    cancelled = call("hold", "--cancel-running", "--reason", "later", typed="2\n", **owner)
    assert cancelled.returncode == 0, cancelled.stderr
    assert "accepted: 2 cancellations recorded.\n" in cancelled.stdout
    assert first.task(task_id)["cancel_reason"] == "later"
    for other, (gate, other_task_id) in zip(others, begun, strict=True):
        gate.open()
        assert other.await_end(other_task_id)["status"] == "cancelled"

    released = call("release", **owner)
    assert (released.returncode, released.stderr) == (0, "")
    eventually(lambda: first.get()["status"] == "idle")
    done = call("submit", first.id, "true", "--wait", "20s", **owner)
    assert done.returncode == 0, done.stderr


def test_submit_with_limits(call: Run, workspace: Workspace) -> None:
    limits = ("--max-duration", "1s", "--max-total-tokens", "9", "--force-after", "0s")

    ended = call("submit", workspace.id, "sleep 600", *limits, "--wait", "20s")

    assert ended.returncode == 8, ended.stderr
    (task_id,) = ended.stdout.split()
    assert "end reason    max_duration reached: 1 s\n" in ended.stderr
    shown = call("task", workspace.id, task_id).stdout
    assert "limits        1 s, 9 tokens, interrupted 0 s after a limit\n" in shown
