"""Each check of the verdict finds its violation, and none in a run that went well."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.long.chaos.answers import Answer
from tests.faults.long.chaos.evidence import Evidence, TaskRow
from tests.faults.long.chaos.faults import Hit
from tests.faults.long.chaos.plan import Fault, Kind, Target, Wire
from tests.faults.long.chaos.verdict import CHECKS, violations
from tests.support.promises.history import EventRecord

WS = "ws_1"
CANCELLED = TaskRow(
    id="task_1",
    workspace_id=WS,
    status="cancelled",
    iterations=1,
    cancel_requested_at=101.0,
    cancel_reason="call 1",
    submitted_at=100.0,
    completed_at=101.2,
)
COMPLETED = TaskRow(
    id="task_2",
    workspace_id=WS,
    status="completed",
    iterations=1,
    submitted_at=105.0,
    completed_at=106.0,
)
EVENTS = [
    EventRecord(WS, 1, "workspace_provisioned"),
    EventRecord(WS, 2, "task_submitted", "task_1"),
    EventRecord(WS, 3, "task_started", "task_1"),
    EventRecord(WS, 4, "task_cancel_requested", "task_1"),
    EventRecord(WS, 5, "iteration_completed", "task_1", number=1),
    EventRecord(WS, 6, "task_completed", "task_1", status="cancelled", iterations=1),
    EventRecord(WS, 7, "task_submitted", "task_2"),
    EventRecord(WS, 8, "task_started", "task_2"),
    EventRecord(WS, 9, "iteration_completed", "task_2", number=1),
    EventRecord(WS, 10, "task_completed", "task_2", status="completed", iterations=1),
]


def answer(call: str, rpc: str, sent: float, **changes: Any) -> Answer:
    """An answer over REST after 0.1 s."""
    plain = Answer(
        call=call,
        rpc=rpc,
        wire=Wire.REST,
        workspace_id=WS,
        sent=sent,
        answered=sent + 0.1,
        status="202",
    )
    return replace(plain, **changes)


ACCEPTED = answer(
    "call 1",
    "CancelTask",
    100.95,
    body={
        "task_id": "task_1",
        "outcome": "accepted",
        "task": {"id": "task_1", "status": "running"},
    },
)
WHOLE = Evidence(
    tasks={"task_1": CANCELLED, "task_2": COMPLETED},
    events=EVENTS,
    last_seqs={WS: 10},
    answers=[
        answer("call 0", "SubmitTask", 100.0, body={"task_id": "task_1"}),
        ACCEPTED,
        answer("call 2", "SubmitTask", 105.0, body={"task_id": "task_2"}),
        answer("call 3", "GetTask", 107.0, body={"id": "task_2", "status": "completed"}),
    ],
)
HOLD = answer("hold", "HoldOrg", 107.5, workspace_id="", body={"remaining": 0})
LOST_ENVOY = Hit(
    Fault(8.0, Kind.KILL, Target.ENVOY, 1.0, 0), False, began=108.0, ended=109.0, came_back=False
)


def with_task(task: TaskRow, **changes: Any) -> Evidence:
    return replace(WHOLE, tasks={**WHOLE.tasks, task.id: replace(task, **changes)})


def with_answers(*answers: Answer) -> Evidence:
    return replace(WHOLE, answers=[*WHOLE.answers, *answers])


def with_event(event: EventRecord) -> Evidence:
    """The event in place of that with its number."""
    return replace(WHOLE, events=[*(each for each in EVENTS if each.seq != event.seq), event])


BROKEN: dict[str, Evidence] = {
    "logs_have_no_gaps": replace(WHOLE, last_seqs={WS: 11}),
    "promised_tasks_end_cancelled": with_task(CANCELLED, status="completed"),
    "tasks_begin_once": with_event(EventRecord(WS, 3, "task_submitted", "task_1")),
    "tasks_end_once": with_task(COMPLETED, status="failed"),
    "ends_agree_with_their_task": with_task(CANCELLED, forced=True),
    "iterations_are_numbered": with_task(CANCELLED, iterations=0),
    "requests_are_recorded_once": with_task(COMPLETED, cancel_requested_at=105.5),
    "one_iteration_follows_a_request": with_event(
        EventRecord(WS, 11, "iteration_completed", "task_1", number=2)
    ),
    "force_is_due": with_task(CANCELLED, forced=True, force_at=101.5),
    "only_force_interrupts": with_event(replace(EVENTS[4], is_tool_call_interrupted=True)),
    "all_ended": with_task(COMPLETED, status="running", completed_at=None),
    "accepted_once": with_answers(ACCEPTED),
    "intents_are_of_their_calls": with_task(CANCELLED, cancel_reason="call 77"),
    "answers_told_the_truth": with_answers(
        answer("call 4", "GetTask", 107.0, body={"id": "task_2", "status": "failed"})
    ),
    "trouble_has_a_cause": with_answers(answer("call 4", "GetTask", 115.0, slug="unavailable")),
    "answers_are_in_form": with_answers(answer("call 4", "GetTask", 107.0, problem="no envelope")),
    "force_was_asked_for": with_task(CANCELLED, forced=True),
    "stops_reach_every_task": with_answers(
        answer("all", "CancelTasks", 105.5, workspace_id="", body={"results": [], "remaining": 0})
    ),
    "nothing_begins_during_a_hold": with_answers(
        HOLD,
        answer("call 4", "ResumeWorkspace", 108.0),
        answer("release", "ReleaseOrg", 109.0, workspace_id=""),
    ),
    "refusals_have_a_hold": with_answers(answer("call 4", "SubmitTask", 108.0, slug="org_on_hold")),
    "limits_are_enforced": with_task(COMPLETED, started_at=105.0, limit_seconds=0.5),
    "stopped_work_has_stopped": with_task(CANCELLED, work_stopped="yes", last_worked_at=102.0),
    "all_came_back": replace(WHOLE, hits=[LOST_ENVOY]),
    "nothing_was_seen": replace(WHOLE, seen=["left behind: 77"]),
}


def test_sound_evidence_has_no_violations() -> None:
    assert violations(WHOLE) == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_check_finds_its_violation(check: Callable[[Evidence], Iterator[str]]) -> None:
    assert list(check(BROKEN[check.__name__]))
