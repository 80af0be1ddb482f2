"""The command `workspace resume`, with a fake client."""

import json

import pytest

from evershell.client import (
    ResumedWorkspace,
    ResumeOutcome,
    ResumeWorkspacesResult,
    Workspace,
    WorkspaceFilter,
    WorkspaceStatus,
)
from tests.unit.cli.fake_client import FakeClient, run

RESUME = ("workspace", "resume")
FOUND = ResumeWorkspacesResult(
    matched=2,
    remaining=2,
    results=tuple(ResumedWorkspace(id_, ResumeOutcome.MATCHED) for id_ in ("ws_1", "ws_2")),
)
CALLS = [
    ResumeWorkspacesResult(matched=2, accepted=1, remaining=1),
    ResumeWorkspacesResult(matched=1, accepted=1),
]


def fake(found: ResumeWorkspacesResult = FOUND) -> FakeClient:
    return FakeClient(resume_workspaces=[found], resume_all_workspaces=[iter(CALLS)])


def test_one_workspace_is_resumed_without_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = Workspace("ws_1", status=WorkspaceStatus.PROVISIONING)
    client = FakeClient(resume_workspace=[resumed])
    result = run(monkeypatch, client, *RESUME, "ws_1")
    assert (result.exit_code, client.calls) == (0, [("resume_workspace", "ws_1", {})])
    assert "provisioning" in result.stdout


def test_many_workspaces_are_resumed_after_their_number_was_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = fake()
    result = run(monkeypatch, client, *RESUME, "--all", input="3\n")
    assert (result.exit_code, "Nothing was resumed" in result.stderr) == (5, True)
    client = fake()
    result = run(monkeypatch, client, *RESUME, "--all", input="2\n")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (
        0,
        "accepted: 2 workspaces resumed. A workspace is idle once its agent is up.",
    )
    assert "This resumes 2 workspaces of your organization." in result.stderr
    assert client.calls == [
        ("resume_workspaces", {"all": True, "dry_run": True}),
        ("resume_all_workspaces", {"all": True}),
    ]


@pytest.mark.parametrize(
    ("found", "options", "shown"),
    [
        (FOUND, ["--dry-run"], "ws_2       matched"),
        (ResumeWorkspacesResult(), [], "No failed workspace matches."),
    ],
)
def test_a_dry_run_or_an_empty_list_resumes_nothing(
    monkeypatch: pytest.MonkeyPatch, found: ResumeWorkspacesResult, options: list[str], shown: str
) -> None:
    client = fake(found)
    result = run(monkeypatch, client, *RESUME, "--all", *options)
    assert (result.exit_code, [name for name, _ in client.calls]) == (0, ["resume_workspaces"])
    assert shown in result.stdout + result.stderr


def test_filters_select_workspaces(monkeypatch: pytest.MonkeyPatch) -> None:
    client = fake()
    pairs = ("workspace=ws_1", "workspace=ws_2", "created-by=user_1")
    arguments = [part for pair in pairs for part in ("--filter", pair)]
    result = run(monkeypatch, client, *RESUME, "--yes", "--json", *arguments)
    assert json.loads(result.stdout)["accepted"] == 2
    wanted = WorkspaceFilter(workspace_ids=("ws_1", "ws_2"), created_by_user_id="user_1")
    assert client.calls == [("resume_all_workspaces", {"filter": wanted})]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("",),
        ("ws_1", "--all"),
        ("ws_1", "--yes"),
        ("--dry-run",),
        ("--all", "--filter", "created-by=user_1"),
        ("--filter", "task=task_1"),
        ("--filter", "workspace="),
        ("--all", "--json"),
    ],
)
def test_a_wrong_command_line_calls_nothing(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    client = fake()
    assert run(monkeypatch, client, *RESUME, *arguments).exit_code == 2
    assert client.calls == []
