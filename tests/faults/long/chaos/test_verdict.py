"""Each check of the verdict finds its violation in evidence that has only one defect."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.long.chaos.answers import NO_ANSWER
from tests.faults.long.chaos.bounds import (
    ends_are_in_time,
    forced_ends_are_in_time,
    forced_ends_say_so,
    trouble_has_a_cause,
)
from tests.faults.long.chaos.broken_stops import BROKEN_STOPS, SOUND_STOPS
from tests.faults.long.chaos.evidence import Evidence
from tests.faults.long.chaos.examples import (
    AGENT_FROZEN,
    AWAY,
    CANCELLED,
    COMPLETED,
    ENVOY_KILLED,
    WHOLE,
    WS,
    running,
    with_answer,
    with_event,
    with_payload,
    with_task,
    without_event,
)
from tests.faults.long.chaos.plan import Stopped, Wire
from tests.faults.long.chaos.verdict import CHECKS, violations
from tests.support.promises.history import EventRecord


def test_sound_evidence_has_no_violations() -> None:
    assert violations(WHOLE) == []


@pytest.mark.parametrize("what", SOUND_STOPS)
def test_sound_stops_have_no_violations(what: str) -> None:
    assert violations(SOUND_STOPS[what]) == []


BROKEN: dict[str, tuple[Evidence, str]] = {
    "a tool that works after its end": (
        with_task(CANCELLED, work_stopped="yes", last_worked_at=(CANCELLED.completed_at or 0) + 1),
        "a tool was at work 1.00 s later",
    ),
    "a task that still runs": (
        with_task(COMPLETED, status="running", completed_at=None),
        "task_2 of ws_1 has not ended",
    ),
    "a completed task that was answered accepted": (
        with_task(CANCELLED, status="completed"),
        "accepted was answered to call 1",
    ),
    "a failed task that was answered already_requested": (
        with_task(CANCELLED, status="failed"),
        "already_requested was answered to call 2",
    ),
    "a completed task that was answered agent_unreachable": (
        with_task(CANCELLED, status="completed"),
        "agent_unreachable was answered to call 3",
    ),
    "a missing task that was answered accepted": (
        with_answer("accepted", body=running("task_9", "accepted")),
        "but its status is missing",
    ),
    "two answers accepted": (
        with_answer("again", body=running("task_1", "accepted")),
        "answered accepted 2 times",
    ),
    "a cancelled task without a request": (
        with_task(COMPLETED, status="cancelled"),
        "no caller asked for it",
    ),
    "an intent without a call": (
        with_task(CANCELLED, cancel_reason="call 77"),
        "'call 77', which did not ask for that",
    ),
    "an intent of a call for another task": (
        with_answer("accepted", task_id="task_2"),
        "'call 1', which did not ask",
    ),
    "an intent of a call for another workspace": (
        with_answer("accepted", workspace_id="ws_2"),
        "which did not ask",
    ),
    "one call that cancelled two tasks": (
        with_task(COMPLETED, status="cancelled", cancel_requested_at=105.5, cancel_reason="call 1"),
        "call 1 cancelled both task_1 and task_2",
    ),
    "an accepted call whose intent is another's": (
        with_task(CANCELLED, cancel_reason="call 2"),
        "but the task names 'call 2'",
    ),
    "an answer with another end": (
        with_answer("read", body={"id": "task_2", "status": "failed"}),
        "reported the end failed",
    ),
    "an answer with an end before it happened": (
        with_answer("read", sent=105.5, answered=105.6),
        "reported the end before it happened",
    ),
    "an answer with an unknown task": (
        with_answer("read", body={"id": "task_8", "status": "running"}),
        "reported an unknown task",
    ),
    "already_finished for a running task": (
        with_answer("finished", body=running("task_1", "already_finished")),
        "reported already_finished",
    ),
    "200 for a running task": (
        with_answer("accepted", status="200"),
        "was answered 200 while its task had not ended",
    ),
    "no_active_task while a task ran": (
        with_answer("none", sent=105.3, answered=105.4),
        "no_active_task, but task_2 ran",
    ),
    "a gap in the log": (without_event(4), "without gaps"),
    "a log without its last entry": (replace(WHOLE, last_seqs={WS: 11}), "without gaps"),
    "a duplicate number in the log": (
        replace(WHOLE, events=[*WHOLE.events, EventRecord(WS, 3, "task_started")]),
        "without gaps",
    ),
    "two ends": (
        with_event(10, "task_completed", "task_2", "completed"),
        "its ends in the log are ['completed', 'completed']",
    ),
    "no end": (without_event(10), "its ends in the log are []"),
    "an end with another status": (
        with_task(COMPLETED, status="failed"),
        "task_2 is failed, but its ends",
    ),
    "an event after the end": (
        with_event(10, "iteration_completed", "task_2"),
        "has events after its end",
    ),
    "two starts": (with_event(3, "task_started", "task_1"), "did not begin once"),
    "two requests": (
        with_event(4, "task_cancel_requested", "task_1"),
        "was asked to end, but its log has",
    ),
    "a request without a record": (
        with_event(8, "task_cancel_requested", "task_2"),
        "was not asked to end",
    ),
    "one iteration too many": (
        with_event(5, "iteration_completed", "task_1"),
        "2 iterations after its cancellation",
    ),
    "an iteration after the request, in a task that had not started": (
        replace(
            WHOLE,
            events=[replace(row, seq={3: 4, 4: 3}.get(row.seq, row.seq)) for row in WHOLE.events],
        ),
        "1 iterations after its cancellation",
    ),
    "a missing iteration number": (with_payload(5, number=2), "but its log has [2]"),
    "an iteration that the row does not count": (
        with_task(CANCELLED, iterations=0),
        "task_1 has 0 iterations",
    ),
    "an end with another count": (with_payload(6, iterations=3), "but its end reports [3]"),
    "an end that is forced only in the log": (with_payload(6, forced=True), "but True in its log"),
    "an end that is forced before its deadline": (
        with_task(CANCELLED, forced=True, force_at=101.5),
        "was forced at 101.2, but force_at is 101.5",
    ),
    "an interrupted iteration without force": (
        with_payload(5, is_tool_call_interrupted=True, has_tool_call=True),
        "but not by force",
    ),
    "a tool call after an interrupted model call": (
        with_payload(5, is_model_call_interrupted=True, has_tool_call=True),
        "has a tool call but no full model call",
    ),
    "a late end": (
        with_task(CANCELLED, completed_at=125.0),
        "23.7 s after its iteration's natural end, of which",
    ),
    "an iteration that continues after its force deadline": (
        with_task(CANCELLED, force_at=101.0, completed_at=124.5),
        "ended 23.5 s after its force deadline, of which the control plane was away for 0.0 s",
    ),
    "a late end that the control plane's absence is too short to excuse": (
        replace(
            with_task(CANCELLED, force_at=101.0, completed_at=132.0), hits=[AGENT_FROZEN, *AWAY]
        ),
        "ended 31.0 s after its force deadline, of which the control plane was away for 7.5 s",
    ),
    "a forced end that is not marked as forced": (
        replace(
            with_task(
                CANCELLED, force_at=101.0, completed_at=103.5, agent_stopped=Stopped.FOR_GOOD
            ),
            hits=[],
        ),
        "its end does not say so",
    ),
    "a failed call while only the disk of the logs was full": (
        with_answer("unreachable", slug="unavailable", sent=115.0, answered=115.1),
        "503 unavailable with nothing wrong",
    ),
    "a failed task while only the disk of the logs was full": (
        with_task(COMPLETED, status="failed", completed_at=116.0),
        "failed with nothing wrong",
    ),
    "an answer without an envelope": (
        with_answer("read", problem="404 has no envelope"),
        "404 has no envelope",
    ),
    "no answer": (with_answer("bare", slug=NO_ANSWER), "was not answered"),
    "no connection, with nothing killed": (
        with_answer("broken", sent=104.0, answered=104.1),
        "with nothing killed",
    ),
    "a bare status, with nothing killed": (
        with_answer("bare", sent=119.5, answered=119.6),
        "with nothing killed",
    ),
    "a bare status of a worker without a fault": (
        with_answer("bare", wire=Wire.WORKER_0),
        "with nothing killed",
    ),
    "a bare status of a worker that was not asked to end": (
        with_answer("bare", status="CANCELLED"),
        "CANCELLED with nothing killed",
    ),
    "a defect": (with_answer("unreachable", slug="internal", status="500"), "500 internal"),
    "a valid credential that is refused": (
        with_answer("unreachable", slug="unauthenticated", status="401"),
        "401 unauthenticated",
    ),
    "a forced end without a request": (
        with_task(CANCELLED, forced=True),
        "was interrupted, but no caller asked",
    ),
    "a program that did not come back": (
        replace(WHOLE, hits=[replace(ENVOY_KILLED, came_back=False)]),
        "envoy did not come back",
    ),
    "an observation during the run": (replace(WHOLE, seen=["left behind: 77"]), "left behind: 77"),
} | BROKEN_STOPS


EXCUSED: dict[str, Evidence] = {
    "late after a force deadline, while the control plane was away": replace(
        with_task(CANCELLED, force_at=101.0, completed_at=127.0), hits=[*WHOLE.hits, *AWAY]
    ),
    "late without a force deadline, under an agent that was stopped for good": with_task(
        CANCELLED, completed_at=141.0, agent_stopped=Stopped.FOR_GOOD
    ),
    "agent_unreachable, for an agent that a tool stopped": replace(
        with_task(CANCELLED, agent_stopped=Stopped.FOR_A_WHILE), hits=[ENVOY_KILLED]
    ),
    "not forced, under an agent that a fault hit": with_task(
        CANCELLED, force_at=101.0, completed_at=103.5, agent_stopped=Stopped.FOR_GOOD
    ),
    "a failed task after a fault": with_task(COMPLETED, status="failed", completed_at=112.0),
}


@pytest.mark.parametrize("what", EXCUSED)
def test_checks_of_time_and_cause_accept_excused_evidence(what: str) -> None:
    checks = (ends_are_in_time, forced_ends_are_in_time, forced_ends_say_so, trouble_has_a_cause)
    assert [violation for check in checks for violation in check(EXCUSED[what])] == []


@pytest.mark.parametrize("what", BROKEN)
def test_a_violation_is_reported(what: str) -> None:
    evidence, message = BROKEN[what]
    found = violations(evidence)
    assert any(message in violation for violation in found), found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_check_finds_a_violation(check: Callable[[Evidence], object]) -> None:
    assert any(list(check(evidence)) for evidence, _ in BROKEN.values())  # type: ignore[call-overload]
