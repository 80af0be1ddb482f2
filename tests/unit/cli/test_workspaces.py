"""The command `workspace delete`, with a fake client."""

import json

import pytest

from evershell.client import Workspace, WorkspaceStatus
from tests.unit.cli.fake_client import FakeClient, run

DELETING = Workspace("ws_1", status=WorkspaceStatus.DELETING)


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_deleted(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    client = FakeClient(delete_workspace=[DELETING])
    result = run(monkeypatch, client, "workspace", "delete", "ws_1", input=answer)
    assert (result.exit_code, client.calls) == (5, [])
    assert "Nothing was deleted" in result.stderr


def test_a_confirmed_deletion_prints_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(delete_workspace=[DELETING])
    result = run(monkeypatch, client, "workspace", "delete", "ws_1", input="y\n")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "workspace ws_1: deleting")
    assert [call[0] for call in client.calls] == ["delete_workspace"]


def test_json_asks_nothing_and_needs_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(delete_workspace=[DELETING])
    refused = run(monkeypatch, client, "workspace", "delete", "ws_1", "--json")
    assert (refused.exit_code, client.calls) == (2, [])
    deleted = run(monkeypatch, client, "workspace", "delete", "ws_1", "--json", "--yes")
    assert json.loads(deleted.stdout)["status"] == "deleting"
