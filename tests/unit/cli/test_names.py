"""Names of workspaces, which every command accepts in place of an id."""

import json

import pytest

from evershell.client import (
    CancelOutcome,
    CancelResult,
    CancelTasksResult,
    Workspace,
    WorkspaceStatus,
)
from tests.unit.cli.fake_client import FakeClient, run

WORKSPACES = [
    Workspace("ws_1", name="nightly", status=WorkspaceStatus.IDLE),
    Workspace("ws_2", name="twin", status=WorkspaceStatus.BUSY),
    Workspace("ws_3", name="twin", status=WorkspaceStatus.IDLE),
    Workspace("ws_4"),
    # This workspace cannot be selected by its name, which is the id of another one.
    Workspace("ws_5", name="ws_1"),
]


def fake(**answers: list[object]) -> FakeClient:
    return FakeClient(list_workspaces=[iter(WORKSPACES), iter(WORKSPACES)], **answers)


def test_a_name_selects_its_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = CancelResult("ws_1", CancelOutcome.NO_ACTIVE_TASK)
    client = fake(cancel=[idle, idle])
    assert run(monkeypatch, client, "cancel", "nightly").exit_code == 3
    assert client.calls[-1][:2] == ("cancel", "ws_1")
    assert run(monkeypatch, client, "cancel", "ws_1").exit_code == 3
    # A command with an id does not list the workspaces.
    assert [call[0] for call in client.calls] == ["list_workspaces", "cancel", "cancel"]


def test_a_name_in_a_filter_selects_its_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    client = fake(cancel_tasks=[CancelTasksResult()])
    run(monkeypatch, client, "cancel", "--filter", "workspace=nightly", "--dry-run")
    assert client.calls[-1][-1]["filter"].workspace_ids == ("ws_1",)


def test_a_mistyped_name_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Did you mean nightly?" in run(monkeypatch, fake(), "cancel", "nighty").stderr


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [("twin", "validation_error", ["ws_2", "ws_3"]), ("none", "workspace_not_found", None)],
)
def test_a_name_that_selects_no_single_workspace_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, code: str, expected: list[str] | None
) -> None:
    client = fake()
    result = run(monkeypatch, client, "cancel", name)
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.startswith(f"{code}: ") and name in result.stderr
    assert "Did you mean" not in result.stderr
    assert all(each in result.stderr for each in expected or [])
    assert [call[0] for call in client.calls] == ["list_workspaces"]
    error = json.loads(run(monkeypatch, fake(), "cancel", name, "--json").stdout)["error"]
    assert (error["code"], error.get("details", {}).get("workspace_ids")) == (code, expected)
