"""The checker refuses wrong histories, and reports the shortest contradiction."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from evershell.histories.judge import judge
from evershell.histories.lines import Call, Delivery
from tests.histories.calls import called, cancel, event, get, history, on, submit, task, watched

PARENT = [submit("p"), submit("c", "ws2", parent_task_id="p")]
WORKSPACES = {"workspaces": [{"id": "ws", "status": "busy", "current_task_id": "t1"}]}

# For each rule: the calls of a history that breaks it, and the calls and events that the report of
# the contradiction must name.
WRONG: dict[str, tuple[Sequence[Call], Sequence[str]]] = {
    "accepted, then completed": (
        [submit("t1"), cancel("accepted", "t1"), get("t1", "completed")],
        ["CancelTask", "GetTask"],
    ),
    "two accepted": (
        [submit("t1"), cancel("accepted", "t1"), cancel("accepted", "t1"), get("t1", "asked")],
        ["CancelTask", "CancelTask"],
    ),
    "cancelled though nobody asked": (
        [submit("t1"), get("t1", "running"), get("t1", "cancelled")],
        ["SubmitTask", "GetTask"],
    ),
    "a named cancellation hits the next task": (
        [
            submit("t1"),
            get("t1", "completed"),
            submit("t2"),
            cancel("already_finished", "t1", task_id="t1"),
            get("t2", "cancelled"),
        ],
        ["SubmitTask", "GetTask"],
    ),
    "a named cancellation answers another task": (
        [submit("t1"), cancel("accepted", "t1", task_id="t0")],
        ["CancelTask"],
    ),
    "an accepted one is forgotten": (
        [submit("t1"), cancel("accepted", "t1"), get("t1", "running"), get("t1", "running")],
        ["CancelTask", "GetTask"],
    ),
    "the next task begins before the end of the accepted one": (
        [submit("t1"), cancel("accepted", "t1"), submit("t2"), get("t1", "asked")],
        ["SubmitTask", "GetTask"],
    ),
    "no_active_task while one runs": (
        [submit("t1"), cancel("no_active_task"), get("t1", "running")],
        ["CancelTask", "GetTask"],
    ),
    "already_requested though nobody asked": (
        [submit("t1"), cancel("already_requested", "t1")],
        ["SubmitTask", "CancelTask"],
    ),
    "already_finished, but it runs": (
        [submit("t1"), cancel("already_finished", "t1", task_id="t1"), get("t1", "running")],
        ["CancelTask", "GetTask"],
    ),
    "unreachable but recorded, then completed": (
        [
            submit("t1"),
            on(
                "CancelTask",
                error="agent_unreachable",
                details={"task_id": "t1", "intent_recorded": "true"},
            ),
            get("t1", "completed"),
        ],
        ["CancelTask", "GetTask"],
    ),
    "two ends": (
        [submit("t1"), get("t1", "completed"), get("t1", "failed")],
        ["GetTask", "GetTask"],
    ),
    "it runs after its end": (
        [submit("t1"), get("t1", "completed"), get("t1", "running")],
        ["GetTask", "GetTask"],
    ),
    "two submissions of one task": ([submit("t1"), submit("t1")], ["SubmitTask", "SubmitTask"]),
    "an undelivered task runs": (
        [
            on("SubmitTask", error="agent_unreachable", details={"task_id": "t1"}),
            get("t1", "running"),
        ],
        ["SubmitTask", "GetTask"],
    ),
    "a submitted task is missing": (
        [submit("t1"), on("GetTask", error="task_not_found", task_id="t1")],
        ["SubmitTask", "GetTask"],
    ),
    "a task that nobody submitted": ([get("t1", "running")], ["GetTask"]),
    "busy with a task that has ended": (
        [
            submit("t1"),
            get("t1", "completed"),
            on("SubmitTask", error="workspace_busy", details={"task_id": "t1"}),
        ],
        ["GetTask", "SubmitTask"],
    ),
    "a task is accepted during a hold": (
        [called("HoldOrg", {}), submit("t1")],
        ["HoldOrg", "SubmitTask"],
    ),
    "a hold after its release": (
        [
            submit("t1"),
            called("HoldOrg", {}),
            called("ReleaseOrg", {}),
            on("SubmitTask", error="org_on_hold"),
        ],
        ["ReleaseOrg", "SubmitTask"],
    ),
    "a hold is forgotten": (
        [called("HoldOrg", {}), called("GetHold", {"on_hold": False})],
        ["HoldOrg", "GetHold"],
    ),
    "a hold that cancels leaves a task": (
        [submit("t1"), called("HoldOrg", {}, cancel_running=True), get("t1", "running")],
        ["HoldOrg", "GetTask"],
    ),
    "a workspace is created during a hold": (
        [called("HoldOrg", {}), called("CreateWorkspace", {"id": "ws2"})],
        ["HoldOrg", "CreateWorkspace"],
    ),
    "a task is accepted after a deletion": (
        [on("DeleteWorkspace", {}), submit("t1")],
        ["DeleteWorkspace", "SubmitTask"],
    ),
    "a workspace that nobody deleted is gone": (
        [submit("t1"), on("GetWorkspace", error="workspace_not_found")],
        ["GetWorkspace"],
    ),
    "a repeated deletion finds nothing": (
        [on("DeleteWorkspace", {}), on("DeleteWorkspace", error="workspace_not_found")],
        ["DeleteWorkspace"],
    ),
    "a stop leaves a task": (
        [submit("t1"), on("StopWorkspace", {}), get("t1", "running")],
        ["StopWorkspace", "GetTask"],
    ),
    "CancelTasks leaves a task": (
        [submit("t1"), called("CancelTasks", {"results": []}, all=True), get("t1", "running")],
        ["CancelTasks", "GetTask"],
    ),
    "CancelTasks accepts a second time": (
        [
            submit("t1"),
            cancel("accepted", "t1"),
            called(
                "CancelTasks",
                {"results": [{"workspace_id": "ws", "task_id": "t1", "outcome": "accepted"}]},
                all=True,
            ),
        ],
        ["CancelTask", "CancelTasks"],
    ),
    "a descendant is left behind": (
        [
            *PARENT,
            cancel("accepted", "p", task_id="p", include_descendants=True),
            get("c", "running", "ws2"),
        ],
        ["CancelTask", "GetTask"],
    ),
    "a child comes after the cancellation of its parent": (
        [submit("p"), cancel("accepted", "p"), submit("c", "ws2", parent_task_id="p")],
        ["CancelTask", "SubmitTask"],
    ),
    "a list without the newest task": (
        [
            submit("t1"),
            submit("t2"),
            on("ListTasks", {"tasks": [task("t1", "completed")]}),
        ],
        ["SubmitTask", "ListTasks"],
    ),
    "a list with two moments": (
        [
            submit("t1"),
            on("ListTasks", {"tasks": [task("t2", "running"), task("t1", "running")]}),
            submit("t2", during=(0.5, 2.5)),
        ],
        ["SubmitTask", "SubmitTask", "ListTasks"],
    ),
    "an empty list while a task runs": (
        [submit("t1"), on("ListTasks", {"tasks": []}, active=True), get("t1", "running")],
        ["ListTasks", "GetTask"],
    ),
    "a workspace without the task that runs": (
        [
            submit("t1"),
            on("GetWorkspace", {"id": "ws", "status": "idle", "current_task_id": ""}),
            get("t1", "running"),
        ],
        ["GetWorkspace", "GetTask"],
    ),
    "a workspace with a task that has ended": (
        [submit("t1"), get("t1", "failed"), called("ListWorkspaces", WORKSPACES)],
        ["GetTask", "ListWorkspaces"],
    ),
    "it runs after a watcher saw its end": (
        [
            submit("t1"),
            watched(0, event("task_submitted"), event("task_completed")),
            get("t1", "running"),
        ],
        ["task_completed", "GetTask"],
    ),
    "a watcher sees a task before its submission": (
        [watched(0, event("task_submitted")), submit("t1")],
        ["task_submitted", "SubmitTask"],
    ),
    "a workspace is there after its deletion": (
        [
            on("DeleteWorkspace", {}),
            on("GetWorkspace", {"id": "ws", "status": "idle", "current_task_id": ""}),
        ],
        ["DeleteWorkspace", "GetWorkspace"],
    ),
    "nobody asked, and a watcher sees a request": (
        [submit("t1"), watched(0, event("task_cancel_requested"))],
        ["SubmitTask", "task_cancel_requested"],
    ),
    "a watcher misses an entry": (
        [submit("t1"), watched(0, event("task_submitted"), event("task_started", seq=3))],
        ["task_submitted", "task_started"],
    ),
    "a watcher gets an entry twice": (
        [submit("t1"), watched(0, event("task_submitted"), event("task_submitted", seq=1))],
        ["task_submitted", "task_submitted"],
    ),
    "a watcher that reconnects misses an entry": (
        [submit("t1"), watched(1, event("task_started", seq=3))],
        ["WatchEvents", "task_started"],
    ),
    "the log has another order than the submissions": (
        [
            submit("t2"),
            get("t2", "completed"),
            submit("t1"),
            watched(0, event("task_submitted"), event("task_submitted", task_id="t2")),
        ],
        ["SubmitTask", "SubmitTask"],
    ),
    "the log has the task of a lost submission too early": (
        [
            submit("t1"),
            get("t1", "completed"),
            submit("t3"),
            get("t3", "completed"),
            on("SubmitTask", error="(no answer)"),
            watched(
                0,
                *(event("task_submitted", task_id=task_id) for task_id in ("t1", "t2", "t3")),
            ),
        ],
        ["SubmitTask", "SubmitTask"],
    ),
    "two ends in the log": (
        [
            submit("t1"),
            watched(
                0,
                event("task_completed"),
                event("task_completed"),
            ),
        ],
        ["task_completed", "task_completed"],
    ),
    "an entry changes": (
        [submit("t1"), watched(0, event("task_submitted")), watched(0, event("task_started"))],
        ["task_submitted", "task_started"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_refused_with_the_shortest_contradiction(name: str) -> None:
    calls, named = WRONG[name]
    found = judge(history(calls))
    assert [_names(each.seen, named) for each in found] == [list(named)], "\n".join(map(str, found))


def _names(seen: Sequence[str], named: Iterable[str]) -> list[str]:
    return [
        next((name for name in set(named) if f"{name}(" in each or f", {name}" in each), each)
        for each in seen
    ]


def _hooked(*seqs: int) -> tuple[list[Call], list[Delivery]]:
    kinds = ["task_submitted", "task_started", "task_completed"]
    calls = history(
        [
            called("CreateWebhook", {"webhook": {"id": "wh", "event_types": kinds}}),
            submit("t1"),
            watched(0, *map(event, kinds)),
        ]
    ).calls
    got = [event(kinds[seq - 1], seq=seq) for seq in seqs]
    return calls, [Delivery("wh", 9.0, each) for each in got]


def test_a_webhook_gets_every_event_in_order_and_may_get_it_twice() -> None:
    for seqs, rule in (
        ((1, 2, 1, 2, 3), None),
        ((1, 3, 2), "in their order"),
        ((1, 3, 1, 2), "in their order"),
        ((1, 2), "gets every event"),
    ):
        judged = history([])
        judged.calls[:], judged.deliveries[:] = _hooked(*seqs)
        found = judge(judged)
        assert [rule in each.rule for each in found if rule] == [True] * bool(rule), found


@pytest.mark.parametrize(("minutes", "is_refused"), [(0, True), (60, False)])
def test_a_delivery_is_missing_only_if_it_can_be_due(minutes: int, is_refused: bool) -> None:
    """A clock that was an hour ahead has recorded an event. Its delivery is due in an hour."""
    judged = history([])
    judged.calls[:], got = _hooked(1, 3)
    started = next(each for call in judged.calls for _, each in call.messages[1:])["event"]
    started["time"] = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)).isoformat()
    recorded = {"time": "2026-01-01T00:00:00Z"}
    judged.deliveries[:] = [Delivery("wh", each.at, {**each.event, **recorded}) for each in got]
    assert bool(judge(judged)) is is_refused
