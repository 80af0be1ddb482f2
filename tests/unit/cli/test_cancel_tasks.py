"""The commands `cancel` (for many tasks), `hold` and `release`, with a fake client."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from evershell.client import (
    CancelledTask,
    CancelTasksResult,
    Hold,
    HoldResult,
    TaskFilter,
    TaskOutcome,
    UnavailableError,
)
from tests.unit.cli.fake_client import AT, FakeClient, error_of, run

FOUND = CancelTasksResult(
    matched=3,
    already_requested=1,
    remaining=2,
    results=(
        CancelledTask("ws_1", "task_1", TaskOutcome.MATCHED),
        CancelledTask("ws_2", "task_\x1b[2J", TaskOutcome.ALREADY_REQUESTED),
    ),
)
NOTHING = CancelTasksResult()
CALLS = [
    CancelTasksResult(matched=3, accepted=1, already_requested=1, remaining=1),
    CancelTasksResult(matched=3, accepted=1, already_requested=2, remaining=0),
]
HELD = Hold("org_1", on_hold=True, held_by="user_1", held_since=AT, reason="gone \x1b[2J wrong")


def fake(found: CancelTasksResult = FOUND, **more: Any) -> FakeClient:
    return FakeClient(cancel_tasks=[found], cancel_all_tasks=[iter(CALLS)], **more)


@pytest.mark.parametrize("answer", ["2\n", "yes\n", "33\n", ""])
def test_another_answer_cancels_nothing(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    client = fake()
    result = run(monkeypatch, client, "cancel", "--all", input=answer)
    assert (result.exit_code, [call[0] for call in client.calls]) == (5, ["cancel_tasks"])
    assert "Nothing was cancelled" in result.stderr


def test_nothing_is_cancelled_that_the_question_did_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = fake(NOTHING)
    result = run(monkeypatch, client, "cancel", "--all")
    assert (result.exit_code, "nothing to cancel" in result.stdout) == (3, True)
    # There is no second call, which would cancel a task that has begun in the meantime.
    assert [call[0] for call in client.calls] == ["cancel_tasks"]


def test_yes_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    client = fake()
    result = run(monkeypatch, client, "cancel", "--all", "--yes", "--force-after", "5s", "--json")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    counts = {name: shown[name] for name in ("matched", "accepted", "remaining")}
    assert counts == {"matched": 3, "accepted": 2, "remaining": 0}
    assert [call[0] for call in client.calls] == ["cancel_all_tasks"]
    assert client.calls[0][-1]["force_after"] == 5.0


@pytest.mark.parametrize("end", [KeyboardInterrupt(), error_of(UnavailableError)])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_early_end_says_how_many_cancellations_are_recorded(
    monkeypatch: pytest.MonkeyPatch, end: BaseException, options: list[str]
) -> None:
    def calls() -> Iterator[CancelTasksResult]:
        yield CALLS[0]
        raise end

    client = FakeClient(cancel_all_tasks=[calls()])
    result = run(monkeypatch, client, "cancel", "--all", "--yes", *options)
    assert result.exit_code not in (0, 3)
    assert "recorded      1, counting only answered calls." in result.stderr


def test_filters_select_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = (
        "task=task_1",
        "task=task_2",
        "workspace=ws_1",
        "workspace=ws_2",
        "created-by=user_1",
        "submitted-by=key_1",
        "submitted-before=2026-01-02T03:04:05Z",
        "metadata.team=a=b",
    )
    client = fake()
    arguments = [part for pair in pairs for part in ("--filter", pair)]
    assert run(monkeypatch, client, "cancel", "--yes", *arguments).exit_code == 0
    assert client.calls[0][-1]["filter"] == TaskFilter(
        task_ids=("task_1", "task_2"),
        workspace_ids=("ws_1", "ws_2"),
        created_by_user_id="user_1",
        submitted_by="key_1",
        submitted_before=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        metadata={"team": "a=b"},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("cancel",),
        ("cancel", "ws_1", "--all"),
        ("cancel", "--all", "--task", ""),
        ("cancel", "", "--filter", "submitted-by=key_1"),
        ("cancel", "ws_1", "--yes"),
        ("cancel", "ws_1", "--filter", "workspace=ws_1"),
        ("cancel", "--all", "--filter", "workspace=ws_1"),
        ("cancel", "--filter", "workspace"),
        ("cancel", "--filter", "task=", "--yes"),
        ("cancel", "--filter", "team=a"),
        ("cancel", "--filter", "metadata.a=1", "--filter", "metadata.a=2"),
        ("cancel", "--filter", "submitted-before=yesterday"),
        ("cancel", "--all", "--json"),
    ],
)
def test_a_wrong_command_line_calls_nothing(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    client = fake()
    assert run(monkeypatch, client, *arguments).exit_code == 2
    assert "cancel_all_tasks" not in [call[0] for call in client.calls]


def test_a_hold_that_cancels_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"cancel_tasks": [FOUND], "hold": [HoldResult(HELD, 2, 1, 0)]}
    refused = FakeClient(**answers)  # type: ignore[arg-type]
    assert run(monkeypatch, refused, "hold", "--cancel-running", input="1\n").exit_code == 5
    assert [call[0] for call in refused.calls] == ["cancel_tasks"]
    client = FakeClient(cancel_tasks=[FOUND], hold=[HoldResult(HELD, 2, 1, 0)])
    result = run(monkeypatch, client, "hold", "--cancel-running", input="3\n")
    assert result.exit_code == 0 and "2 cancellations recorded" in result.stdout
    assert client.calls[-1] == ("hold", {"reason": "", "cancel_running": True})
