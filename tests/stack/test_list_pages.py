"""Lists that have empty pages before their end. Each client reads on after an empty page."""

import json

import psycopg
import pytest

from evershell.client import Client, ValidationError
from evershell.store.scans import MAX_ROWS
from tests.support.commands import Run
from tests.support.stack import Gate, Stack, Workspace

# The id of the only entry that matches the query. It is the last entry in the list.
_MATCHING = "aud_00000000000000000000000001"
_ENTRIES = """
    INSERT INTO audit_entries (id, time, org_id, actor_id, credential_kind, credential_id, rpc,
        workspace_id, task_id, outcome, reason, request_id, trace_id, client_address)
    SELECT 'aud_' || lpad(n::text, 26, '0'), now(), w.org_id, 'key_1', 'api_key', 'key_1',
        'CancelTask', w.id, '', CASE n WHEN 1 THEN 'rare' ELSE 'usual' END, '', '', '', ''
    FROM generate_series(1, %s) n, workspaces w WHERE w.id = %s
"""


@pytest.fixture
def entries(stack: Stack, workspace: Workspace) -> None:
    """Adds audit entries to the workspace: many that do not match, and an older one that does."""
    with psycopg.connect(stack.ready["database_url"]) as connection:
        connection.execute(_ENTRIES, (2 * MAX_ROWS, workspace.id))


def test_an_empty_page_is_not_the_end_of_a_list(
    entries: None, stack: Stack, workspace: Workspace, call: Run
) -> None:
    query = {"outcome": "rare"}
    pages = list[list[str]]()
    while not pages or query.get("page_token"):
        page = workspace.rest.get(f"{workspace.path}/audit", params=query)
        pages.append([each["id"] for each in page["entries"]])
        query["page_token"] = page["next_page_token"]
    assert pages[0] == [] and [_MATCHING] in pages and len(pages) <= 4
    with Client(stack.ready["grpc_addr"], stack.tokens["full_access"]) as client:
        found = list(client.list_audit_entries(workspace_id=workspace.id, outcome="rare"))
    assert [each.id for each in found] == [_MATCHING]
    printed = call("audit", "--workspace", workspace.id, "--outcome", "rare", "--json").stdout
    assert [each["id"] for each in json.loads(printed)["entries"]] == [_MATCHING]


def test_200_workspaces_are_read_by_their_ids(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.begin(gate.command)
    query = {"workspace_ids": [workspace.id, *(f"ws_{number:026}" for number in range(199))]}
    listed = workspace.rest.get("/v1/workspaces", params=query)["workspaces"]
    assert [each["id"] for each in listed] == [workspace.id]
    active = workspace.rest.get("/v1/tasks", params=query | {"active": "true"})["tasks"]
    assert [each["id"] for each in active] == [task_id]
    with Client(stack.ready["grpc_addr"], stack.tokens["full_access"]) as client:
        ids = query["workspace_ids"]
        assert [each.id for each in client.list_workspaces(workspace_ids=ids)] == [workspace.id]
        with pytest.raises(ValidationError, match="has 201 entries"):
            next(iter(client.list_tasks(active=True, workspace_ids=[*ids, "ws_1"])))
    gate.open()
