"""Idle workspaces give up their pods, and the next task wakes them."""

import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

# An idle workspace is suspended after this time. The controller looks for idle workspaces at the
# same interval.
IDLE_SECONDS = 3.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    state_dir = tmp_path_factory.mktemp("suspending") / "state"
    running = Stack(state_dir, IDLE_SUSPEND_MINUTES=str(IDLE_SECONDS / 60))
    with running.started():
        yield running


@pytest.fixture
def suspended(stack: Stack) -> Workspace:
    """A workspace that has completed one task and was then suspended."""
    made = Workspace(stack)
    made.await_end(made.submit("echo kept > note"))
    suspend(made)
    return made


def suspend(at: Workspace) -> None:
    at.await_status("suspended")
    eventually(lambda: at.stack.pod_processes(at.id) == [])


def output(at: Workspace, task_id: str) -> str:
    """Returns the output of the task's only command."""
    iteration = at.await_event("iteration_completed", task_id)["iteration_completed"]
    at.await_end(task_id)
    written: str = iteration["tool_call"]["result"]["output"]
    return written


def test_a_task_wakes_a_suspended_workspace_and_finds_its_files(suspended: Workspace) -> None:
    assert suspended.get()["current_task_id"] == ""
    assert suspended.cancel()["outcome"] == "no_active_task"
    submitted = suspended.rest.post(f"{suspended.path}/tasks", {"description": "cat note"})
    # The call has waited until the agent started the task.
    assert submitted["status"] in ("running", "completed")
    assert output(suspended, submitted["task_id"]) == "kept\n"
    assert suspended.get()["epoch"] == "2"
    types = [event["type"] for event in suspended.log()]
    assert types[-5:] == [
        "task_submitted",
        "workspace_resumed",
        "task_started",
        "iteration_completed",
        "task_completed",
    ]


def test_a_task_is_cancelled_before_the_agent_is_there(stack: Stack, suspended: Workspace) -> None:
    """The task is cancelled while no controller runs. Later, it ends and the workspace wakes."""
    answers: list[httpx.Response] = []

    def submit() -> None:
        answers.append(
            suspended.rest.call("POST", f"{suspended.path}/tasks", json={"description": "true"})
        )

    with stack.frozen("fleet"):
        calling = threading.Thread(target=submit)
        calling.start()
        eventually(lambda: suspended.get()["status"] == "provisioning")
        task_id = suspended.get()["current_task_id"]
        cancelled = suspended.cancel()
        assert (cancelled["outcome"], cancelled["task_id"]) == ("accepted", task_id)
        assert suspended.cancel(reason="again")["outcome"] == "already_requested"
        refused = suspended.rest.fails(
            "POST", f"{suspended.path}/tasks", json={"description": "true"}
        )
        assert refused.slug == "workspace_busy"
    end = suspended.await_end(task_id)
    assert (end["status"], end["iterations"]) == ("cancelled", 0)
    calling.join()
    # Either the controller ends the task, or the agent does as soon as it has registered.
    assert answers[0].json()["status"] in ("running", "cancelled")
    suspended.await_status("idle")
    assert output(suspended, suspended.submit("cat note")) == "kept\n"


def test_a_suspended_workspace_stays_so_over_a_restart(stack: Stack, suspended: Workspace) -> None:
    stack.stop()
    stack.start()
    assert suspended.get()["status"] == "suspended"
    assert output(suspended, suspended.submit("cat note")) == "kept\n"


def test_a_suspended_workspace_is_stopped_and_resumed(suspended: Workspace) -> None:
    # The controller may not have recorded the end of the pod yet.
    assert suspended.rest.post(f"{suspended.path}/stop")["status"] in ("stopping", "stopped")
    suspended.await_status("stopped")
    suspended.rest.post(f"{suspended.path}/resume", {})
    suspended.await_status("idle")
