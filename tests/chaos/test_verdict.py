"""Each check of the verdict sees what it is for, in evidence that is whole but for one thing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.answers import BARE, NO_ANSWER, NO_CONNECTION, Answer
from tests.chaos.faults import Hit
from tests.chaos.plan import Fault, Kind, Target, Wire
from tests.chaos.verdict import CHECKS, EventRow, Evidence, TaskRow, violations

WS = "ws_1"
CANCELLED = TaskRow(
    id="task_1",
    workspace_id=WS,
    status="cancelled",
    iteration_seconds=0.3,
    cancel_requested_at=101.0,
    cancel_reason="call 1",
    completed_at=101.2,
)
COMPLETED = TaskRow(id="task_2", workspace_id=WS, status="completed", iteration_seconds=0.3, completed_at=106.0)
LOG = (
    ("task_submitted", "task_1"),
    ("task_started", "task_1"),
    ("task_cancel_requested", "task_1"),
    ("iteration_completed", "task_1"),
    ("task_completed", "task_1"),
    ("task_submitted", "task_2"),
    ("task_started", "task_2"),
    ("iteration_completed", "task_2"),
    ("task_completed", "task_2"),
)
STATUS = {"task_1": "cancelled", "task_2": "completed"}


def answer(call: str, rpc: str, sent: float, wire: Wire = Wire.REST, task_id: str = "", **changes: Any) -> Answer:
    given = Answer(call=call, rpc=rpc, wire=wire, workspace_id=WS, task_id=task_id, sent=sent, answered=sent + 0.1, status="202")
    return replace(given, **changes)


def running(task_id: str, outcome: str) -> dict[str, Any]:
    return {"task_id": task_id, "outcome": outcome, "task": {"id": task_id, "status": "running"}}


ENVOY_KILLED = Hit(Fault(8.0, Kind.KILL, Target.ENVOY, 1.0, 0), missed=False, began=108.0, ended=109.0)
# Whole: one task that was cancelled, one that completed, and calls that met trouble while Envoy was killed.
ANSWERS = {
    "submit 1": answer("call 0", "SubmitTask", 100.0, body={"task_id": "task_1"}),
    "accepted": answer("call 1", "CancelTask", 100.95, body=running("task_1", "accepted")),
    "again": answer("call 2", "CancelTask", 101.1, Wire.WORKER_1, "task_1", body=running("task_1", "already_requested")),
    "unreachable": answer(
        "call 3",
        "CancelTask",
        101.1,
        status="503",
        slug="agent_unreachable",
        body={"task_id": "task_1", "intent_recorded": "true"},
    ),
    "finished": answer(
        "call 4",
        "CancelTask",
        102.0,
        task_id="task_1",
        body={"task_id": "task_1", "outcome": "already_finished", "task": {"id": "task_1", "status": "cancelled"}},
    ),
    "none": answer("call 5", "CancelTask", 103.0, body={"task_id": "", "outcome": "no_active_task", "task": None}),
    "submit 2": answer("call 6", "SubmitTask", 105.0, body={"task_id": "task_2"}),
    "read": answer("call 7", "GetTask", 107.0, status="200", body={"id": "task_2", "status": "completed"}),
    "broken": answer("call 8", "CancelTask", 108.2, slug=NO_CONNECTION, status=""),
    "bare": answer("call 9", "CancelTask", 110.5, Wire.GRPC, slug=BARE, status="UNAVAILABLE"),
}
WHOLE = Evidence(
    tasks={"task_1": CANCELLED, "task_2": COMPLETED},
    events=[
        EventRow(WS, 1, "workspace_provisioned"),
        *(
            EventRow(WS, seq, type_, task_id, STATUS[task_id] if type_ == "task_completed" else None)
            for seq, (type_, task_id) in enumerate(LOG, 2)
        ),
    ],
    last_seqs={WS: 10},
    answers=list(ANSWERS.values()),
    hits=[ENVOY_KILLED],
)


def test_what_is_whole_is_passed() -> None:
    assert violations(WHOLE) == []


def with_task(task: TaskRow, **changes: Any) -> Evidence:
    return replace(WHOLE, tasks={**WHOLE.tasks, task.id: replace(task, **changes)})


def with_answer(name: str, **changes: Any) -> Evidence:
    return replace(WHOLE, answers=list({**ANSWERS, name: replace(ANSWERS[name], **changes)}.values()))


def with_event(at: int, type_: str, task_id: str | None = None, status: str | None = None) -> Evidence:
    """Another entry behind this place, in a log that stays without gaps."""
    rows = [*WHOLE.events[:at], EventRow(WS, 0, type_, task_id, status), *WHOLE.events[at:]]
    return replace(WHOLE, events=[replace(row, seq=seq) for seq, row in enumerate(rows, 1)], last_seqs={WS: len(rows)})


def without_event(seq: int) -> Evidence:
    return replace(WHOLE, events=[row for row in WHOLE.events if row.seq != seq])


BROKEN: dict[str, tuple[Evidence, str]] = {
    "a task that still runs": (with_task(COMPLETED, status="running", completed_at=None), "task_2 of ws_1 has not ended"),
    "accepted, and completed": (with_task(CANCELLED, status="completed"), "accepted was answered to call 1"),
    "requested, and failed": (with_task(CANCELLED, status="failed"), "already_requested was answered to call 2"),
    "unreachable, and completed": (with_task(CANCELLED, status="completed"), "agent_unreachable was answered to call 3"),
    "accepted, and not there": (with_answer("accepted", body=running("task_9", "accepted")), "and it is missing"),
    "accepted twice": (with_answer("again", body=running("task_1", "accepted")), "answered accepted 2 times"),
    "cancelled unasked": (with_task(COMPLETED, status="cancelled"), "nobody asked for it"),
    "an intent of no call": (with_task(CANCELLED, cancel_reason="call 77"), "'call 77', which did not ask for that"),
    "an intent of a call for another task": (with_answer("accepted", task_id="task_2"), "'call 1', which did not ask"),
    "an intent of a call for another workspace": (with_answer("accepted", workspace_id="ws_2"), "which did not ask"),
    "one call that cancelled two tasks": (
        with_task(COMPLETED, status="cancelled", cancel_requested_at=105.5, cancel_reason="call 1"),
        "call 1 cancelled both task_1 and task_2",
    ),
    "accepted for another's intent": (with_task(CANCELLED, cancel_reason="call 2"), "and it names 'call 2'"),
    "an end that was another": (with_answer("read", body={"id": "task_2", "status": "failed"}), "had ended failed"),
    "an end that was not yet": (with_answer("read", sent=105.5, answered=105.6), "was told its end before it was"),
    "a task that is not there": (with_answer("read", body={"id": "task_8", "status": "running"}), "task that is not there"),
    "finished, and running": (with_answer("finished", body=running("task_1", "already_finished")), "told already_finished"),
    "200 without an end": (with_answer("accepted", status="200"), "was answered 200 while its task had not ended"),
    "no task, while one ran": (with_answer("none", sent=105.3, answered=105.4), "no_active_task, and task_2 ran"),
    "a gap": (without_event(4), "without gaps"),
    "an end of the log that is missing": (replace(WHOLE, last_seqs={WS: 11}), "without gaps"),
    "a number twice": (replace(WHOLE, events=[*WHOLE.events, EventRow(WS, 3, "task_started")]), "without gaps"),
    "two ends": (with_event(10, "task_completed", "task_2", "completed"), "its ends in the log are ['completed', 'completed']"),
    "no end": (without_event(10), "its ends in the log are []"),
    "an end with another status": (with_task(COMPLETED, status="failed"), "task_2 is failed, and its ends"),
    "something behind the end": (with_event(10, "iteration_completed", "task_2"), "goes on behind its end"),
    "two beginnings": (with_event(3, "task_started", "task_1"), "did not begin once"),
    "two requests": (with_event(4, "task_cancel_requested", "task_1"), "was asked to end, and its log says"),
    "a request without a record": (with_event(8, "task_cancel_requested", "task_2"), "was not asked to end"),
    "one iteration too many": (with_event(5, "iteration_completed", "task_1"), "2 iterations after it was cancelled"),
    "a late end": (with_task(CANCELLED, completed_at=125.0), "23.7 s after its iteration's natural end"),
    "no envelope": (with_answer("read", problem="404 has no envelope"), "404 has no envelope"),
    "no answer": (with_answer("bare", slug=NO_ANSWER), "was not answered"),
    "no connection, with nothing killed": (with_answer("broken", sent=104.0, answered=104.1), "with nothing killed"),
    "a bare status, with nothing killed": (with_answer("bare", sent=111.5, answered=111.6), "with nothing killed"),
    "a bare status of a worker that nothing befell": (with_answer("bare", wire=Wire.WORKER_0), "with nothing killed"),
    "a bare status of a worker that was not asked to end": (
        with_answer("bare", status="CANCELLED"),
        "CANCELLED with nothing killed",
    ),
    "a defect": (with_answer("unreachable", slug="internal", status="500"), "500 internal"),
    "taken for someone else": (with_answer("unreachable", slug="unauthenticated", status="401"), "401 unauthenticated"),
    "broken off unasked": (with_task(CANCELLED, forced=True), "was broken off, and nobody asked"),
    "one that stayed away": (replace(WHOLE, hits=[replace(ENVOY_KILLED, came_back=False)]), "envoy did not come back"),
    "something that was seen": (replace(WHOLE, seen=["left behind: 77"]), "left behind: 77"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_told(what: str) -> None:
    evidence, told = BROKEN[what]
    found = violations(evidence)
    assert any(told in violation for violation in found), found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_no_check_is_idle(check: Callable[[Evidence], object]) -> None:
    assert any(list(check(evidence)) for evidence, _ in BROKEN.values())  # type: ignore[call-overload]
