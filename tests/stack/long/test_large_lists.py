"""Pages of large tasks."""

from tests.support.stack import Stack, Workspace


def test_a_list_of_large_tasks_fits_into_messages(stack: Stack, workspace: Workspace) -> None:
    """By default a gRPC client accepts messages of up to 4 MiB."""
    large = "# " + "🐚" * 99_000
    submitted = []
    for _ in range(12):
        submitted.append(workspace.submit(large))
        workspace.await_end(submitted[-1])
    listed: list[str] = []
    token = ""
    while True:
        page = stack.grpc().call("ListTasks", workspace_id=workspace.id, page_token=token)
        listed += [task["id"] for task in page["tasks"]]
        if not (token := page["next_page_token"]):
            break
    assert listed == submitted[::-1]
