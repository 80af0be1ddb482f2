"""A cancellation from start to end, as a customer sees it through Envoy."""

from tests.support.stack import Gate, Workspace


def test_a_cancelled_task_ends_after_its_iteration_and_the_agent_takes_the_next_task(
    workspace: Workspace, gate: Gate
) -> None:
    pid = workspace.stack.agent_pid(workspace.id)
    task_id = workspace.submit("echo first", gate.command, "echo never")
    workspace.await_event("iteration_completed", task_id)
    # Waits for the second iteration, which a cancellation before its beginning would prevent.
    workspace.await_phase(task_id, "tool_call")

    answer = workspace.cancel(reason="it has gone wrong")

    assert answer["outcome"] == "accepted"
    assert (answer["workspace_id"], answer["task_id"], answer["reason"]) == (
        workspace.id,
        task_id,
        "it has gone wrong",
    )
    assert answer["requested_at"] and answer["requested_by"].startswith("key_")
    # The response came before the end of the iteration.
    assert answer["task"]["status"] == "running"
    assert workspace.task(task_id)["cancel_reason"] == "it has gone wrong"
    gate.open()
    end = workspace.await_end(task_id)
    assert end["status"] == "cancelled"
    assert (end["iterations"], end["forced"], end["work_stopped"]) == (2, False, "yes")
    assert end["cancel"]["reason"] == "it has gone wrong"
    # The iteration in flight is recorded with its result, which becomes the result of the task.
    (_, last) = [entry for entry in workspace.log() if entry["type"] == "iteration_completed"]
    assert last["tool_call"]["result"]["output"] == end["result"] == "open\n"
    assert end["usage"] == {
        "input_tokens": "0",
        "output_tokens": "0",
        "model_calls": "2",
        "tool_calls": "2",
        "cost": {"currency_code": "USD", "units": "0", "nanos": 0},
    }

    following = workspace.submit("echo as if nothing had been")

    assert workspace.await_end(following)["status"] == "completed"
    assert workspace.stack.agent_pid(workspace.id) == pid
    assert workspace.get()["epoch"] == "1"
    types = [entry["type"] for entry in workspace.log()]
    assert types == [
        "workspace_provisioned",
        "task_submitted",
        "task_started",
        "iteration_completed",
        "task_cancel_requested",
        "iteration_completed",
        "task_completed",
        "task_submitted",
        "task_started",
        "iteration_completed",
        "task_completed",
    ]
    assert [entry["seq"] for entry in workspace.log()] == list(range(1, len(types) + 1))
