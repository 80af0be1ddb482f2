"""Trees of tasks, through the edge, with tasks of a second organization."""

from tests.support.other_org import OTHER_ORG, begin
from tests.support.stack import Gate, Stack, Workspace


def test_a_tree_is_cancelled_and_shown(
    stack: Stack, others: list[Workspace], workspace: Workspace
) -> None:
    parent, child = others
    [(gate, root_id)] = begin([parent])
    below = Gate(child)
    child_id = child.submit(below.command, "touch never", parent_task_id=root_id)
    child.await_phase(child_id, "tool_call")
    shown = child.task(child_id)
    assert (shown["parent_task_id"], shown["root_task_id"]) == (root_id, root_id)
    assert parent.task(root_id)["root_task_id"] == root_id
    submitted = child.await_event("task_submitted", child_id)
    assert submitted["task_submitted"]["parent_task_id"] == root_id
    listed = child.rest.get(f"/v1/tasks?root_task_id={root_id}")
    assert [each["id"] for each in listed["tasks"]] == [child_id, root_id]
    assert workspace.rest.get(f"/v1/tasks?root_task_id={root_id}")["tasks"] == []
    assert workspace.rest.call("GET", "/v1/tasks").status_code == 400
    assert {root_id, child_id} <= _active(child) and not {root_id, child_id} & _active(workspace)
    refused = workspace.rest.post(
        f"{workspace.path}/tasks", {"description": "ls", "parent_task_id": root_id}, 404
    )
    assert refused["error"]["code"] == "task_not_found"
    path = f"{parent.path}/tasks/{root_id}/cancel"
    answer = parent.rest.post(path, {"include_descendants": True, "reason": "gone wrong"})
    assert (answer["outcome"], answer["descendants_cancelled"]) == ("accepted", 1)
    assert stack.grpc(OTHER_ORG).call(
        "CancelTask", workspace_id=parent.id, task_id=root_id, include_descendants=True
    )["outcome"] == ("already_requested")
    late = {"description": "ls", "parent_task_id": child_id}
    refused = parent.rest.post(f"{parent.path}/tasks", late, 409)
    assert refused["error"]["code"] == "parent_not_running"
    for at, task_id, opened in ((parent, root_id, gate), (child, child_id, below)):
        opened.open()
        end = at.await_end(task_id)
        assert (end["status"], end["iterations"]) == ("cancelled", 1)
        assert end["cancel"]["reason"] == "gone wrong"
        assert not (stack.files(at.id) / "never").exists()
    assert not {root_id, child_id} & _active(child)


def test_a_descendant_is_cancelled_after_the_end_of_its_parent(others: list[Workspace]) -> None:
    """The descendant's agent is signalled at once, so `force_after` interrupts its iteration."""
    parent, child = others
    [(gate, root_id)] = begin([parent])
    child_id = child.submit("sleep 600", parent_task_id=root_id)
    child.await_phase(child_id, "tool_call")
    parent.cancel(task_id=root_id)
    gate.open()
    assert parent.await_end(root_id)["status"] == "cancelled"
    assert child.task(child_id)["status"] == "running"
    path = f"{parent.path}/tasks/{root_id}/cancel"
    answer = parent.rest.post(path, {"include_descendants": True, "force_after": "0s"})
    assert (answer["outcome"], answer["descendants_cancelled"]) == ("already_finished", 1)
    end = child.await_end(child_id)
    assert (end["status"], end["forced"]) == ("cancelled", True)


def _active(workspace: Workspace) -> set[str]:
    """Returns the ids of the organization's tasks that have not ended."""
    listed = workspace.rest.get("/v1/tasks", params={"active": "true", "page_size": "200"})
    return {each["id"] for each in listed["tasks"]}
