"""A running stack removes tasks that are older than TASK_RETENTION_DAYS."""

import pytest

from evershell.client import Client
from evershell.client.errors import ValidationError
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

_AGE = (
    "UPDATE events SET time = time - interval '2 days' WHERE workspace_id = %s",
    "UPDATE tasks SET created_at = created_at - interval '2 days', "
    "started_at = started_at - interval '2 days', "
    "completed_at = completed_at - interval '2 days' WHERE workspace_id = %s",
)


def test_old_tasks_are_removed_and_a_watcher_that_asks_for_them_learns_where_the_log_begins(
    fragile_stack: Stack,
) -> None:
    workspace = Workspace(fragile_stack)
    old = workspace.submit("true")
    workspace.await_end(old)
    last_seq = workspace.log()[-1]["seq"]
    with fragile_stack.database() as database:
        for statement in _AGE:
            database.execute(statement, (workspace.id,))
    new = workspace.submit("true")
    workspace.await_end(new)
    # A new leader sweeps every workspace immediately, without waiting for the pause between sweeps.
    fragile_stack.replace_controllers()
    task = f"{workspace.path}/tasks/{old}"
    eventually(lambda: workspace.rest.call("GET", task).status_code == 404, 60)
    assert workspace.rest.fails("POST", f"{task}/cancel").slug == "task_not_found"
    listed = workspace.rest.get(f"{workspace.path}/tasks")["tasks"]
    assert [each["id"] for each in listed] == [new]
    audit = workspace.rest.get(f"{workspace.path}/audit", params={"task_id": old})
    assert audit["entries"][-1]["rpc"] == "SubmitTask"

    seen = workspace.rest.fails("GET", f"{workspace.path}/events?after=1")
    assert (seen.slug, seen.status) == ("validation_error", 400)
    assert f"begins with seq {last_seq + 1}" in seen.details["fields"]["after"]
    with Client(fragile_stack.ready["grpc_addr"], fragile_stack.tokens["full_access"]) as client:
        events = list(client.watch(workspace.id, task_id=new))
        assert events[0].seq == last_seq + 1
        with pytest.raises(ValidationError, match=f"begins with seq {last_seq + 1}"):
            next(iter(client.watch(workspace.id, after=1)))
