"""The limits of a task, with real agents."""

from datetime import datetime, timedelta

from evershell.client import Client, TaskLimits
from tests.support.stack import Gate, Stack, Workspace


def test_a_task_is_cancelled_at_its_duration(workspace: Workspace, gate: Gate) -> None:
    limits = {"max_duration": "1.500s"}
    task_id = workspace.submit(gate.command, "touch never", limits=limits)
    workspace.await_phase(task_id, "tool_call")
    assert workspace.task(task_id)["limits"] == limits
    requested = workspace.await_event("task_cancel_requested", task_id)["task_cancel_requested"]
    cancel = requested["cancel"]
    assert (cancel["requested_by"], cancel["credential_kind"], cancel["reason"]) == (
        "system:limit",
        "system",
        "max_duration reached: 1.5 s",
    )
    # The iteration in flight ends normally.
    assert workspace.task(task_id)["status"] == "running"
    gate.open()
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"], end["forced"]) == ("cancelled", 1, False)
    assert not (workspace.stack.files(workspace.id) / "never").exists()
    task = workspace.task(task_id)
    started, asked = (
        datetime.fromisoformat(task[name]) for name in ("started_at", "cancel_requested_at")
    )
    # The controller looks every second or so.
    assert timedelta(seconds=1.5) <= asked - started < timedelta(seconds=30)
    workspace.await_end(workspace.submit("true"))


def test_an_iteration_is_interrupted_after_the_limit(workspace: Workspace) -> None:
    limits = {"max_duration": "1s", "force_after": "0.5s"}
    end = workspace.await_end(workspace.submit("sleep 600", limits=limits))
    assert (end["status"], end["forced"]) == ("cancelled", True)
    assert end["cancel"]["force_requested_by"] == "system:limit"


def test_the_client_sets_limits(stack: Stack, workspace: Workspace) -> None:
    limits = TaskLimits(max_duration=timedelta(seconds=0.5), force_after=timedelta())
    with Client(f"http://{stack.ready['grpc_addr']}", stack.tokens["full_access"]) as client:
        submitted = client.submit_task(workspace.id, "sleep 600", limits=limits)
        task = client.wait_for_task(workspace.id, submitted.task_id, timeout=20)
    assert (task.status, task.forced, task.limits) == ("cancelled", True, limits)
    assert task.cancel_requested_by == "system:limit"


def test_a_limit_is_reached_while_the_controller_is_frozen(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.submit(gate.command, limits={"max_duration": "1s"})
    workspace.await_phase(task_id, "tool_call")
    with stack.frozen("fleet"):
        # The commit of the iteration finds it.
        started = datetime.fromisoformat(workspace.task(task_id)["started_at"])
        while datetime.now(started.tzinfo) < started + timedelta(seconds=1):
            workspace.task(task_id)
        gate.open()
        end = workspace.await_end(task_id)
    assert (end["status"], end["cancel"]["requested_by"]) == ("cancelled", "system:limit")


def test_wrong_limits_are_refused(workspace: Workspace) -> None:
    for limits, field in (
        ({"max_duration": "0s"}, "limits.max_duration"),
        ({"max_total_tokens": "0"}, "limits.max_total_tokens"),
        ({"force_after": "1s"}, "limits.force_after"),
    ):
        body = {"description": "true", "limits": limits}
        failed = workspace.rest.fails("POST", f"{workspace.path}/tasks", json=body)
        assert (failed.status, list(failed.details["fields"])) == (400, [field])
