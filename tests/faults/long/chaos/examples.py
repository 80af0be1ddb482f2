"""Evidence without a violation, and functions that change one thing in it."""

from dataclasses import replace
from typing import Any

from tests.faults.long.chaos.answers import BARE, NO_CONNECTION, Answer
from tests.faults.long.chaos.evidence import Evidence, TaskRow
from tests.faults.long.chaos.faults import Hit
from tests.faults.long.chaos.plan import Fault, Kind, Target, Wire
from tests.support.promises.history import EventRecord

WS = "ws_1"
CANCELLED = TaskRow(
    id="task_1",
    workspace_id=WS,
    status="cancelled",
    iterations=1,
    iteration_seconds=0.3,
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
    iteration_seconds=0.3,
    submitted_at=105.0,
    completed_at=106.0,
)
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
PAYLOADS: dict[tuple[str, str], dict[str, Any]] = {
    ("iteration_completed", "task_1"): {"number": 1},
    ("iteration_completed", "task_2"): {"number": 1},
    ("task_completed", "task_1"): {"status": "cancelled", "iterations": 1},
    ("task_completed", "task_2"): {"status": "completed", "iterations": 1},
}


def answer(
    call: str, rpc: str, sent: float, wire: Wire = Wire.REST, task_id: str = "", **changes: Any
) -> Answer:
    given = Answer(
        call=call,
        rpc=rpc,
        wire=wire,
        workspace_id=WS,
        task_id=task_id,
        sent=sent,
        answered=sent + 0.1,
        status="202",
    )
    return replace(given, **changes)


def running(task_id: str, outcome: str) -> dict[str, Any]:
    return {"task_id": task_id, "outcome": outcome, "task": {"id": task_id, "status": "running"}}


ENVOY_KILLED = Hit(
    Fault(8.0, Kind.KILL, Target.ENVOY, 1.0, 0), missed=False, began=108.0, ended=109.0
)
AGENT_FROZEN = Hit(
    Fault(1.0, Kind.FREEZE, Target.AGENT, 0.1, 0),
    missed=False,
    began=101.0,
    ended=101.1,
    workspace_id=WS,
)
LOGS_FULL = Hit(Fault(14.0, Kind.FILL, Target.LOGS, 2.0, 0), missed=False, began=114.0, ended=117.0)
# Evidence without a violation: one cancelled task, one completed task, and calls that failed while
# Envoy was down.
ANSWERS = {
    "submit 1": answer("call 0", "SubmitTask", 100.0, body={"task_id": "task_1"}),
    "accepted": answer("call 1", "CancelTask", 100.95, body=running("task_1", "accepted")),
    "again": answer(
        "call 2",
        "CancelTask",
        101.1,
        Wire.WORKER_1,
        "task_1",
        body=running("task_1", "already_requested"),
    ),
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
        body={
            "task_id": "task_1",
            "outcome": "already_finished",
            "task": {"id": "task_1", "status": "cancelled"},
        },
    ),
    "none": answer(
        "call 5",
        "CancelTask",
        103.0,
        body={"task_id": "", "outcome": "no_active_task", "task": None},
    ),
    "submit 2": answer("call 6", "SubmitTask", 105.0, body={"task_id": "task_2"}),
    "read": answer(
        "call 7", "GetTask", 107.0, status="200", body={"id": "task_2", "status": "completed"}
    ),
    "broken": answer("call 8", "CancelTask", 108.2, slug=NO_CONNECTION, status=""),
    "bare": answer("call 9", "CancelTask", 110.5, Wire.GRPC, slug=BARE, status="UNAVAILABLE"),
}
WHOLE = Evidence(
    tasks={"task_1": CANCELLED, "task_2": COMPLETED},
    events=[
        EventRecord(WS, 1, "workspace_provisioned"),
        *(
            EventRecord(WS, seq, type_, task_id, **PAYLOADS.get((type_, task_id), {}))
            for seq, (type_, task_id) in enumerate(LOG, 2)
        ),
    ],
    last_seqs={WS: 10},
    answers=list(ANSWERS.values()),
    hits=[AGENT_FROZEN, ENVOY_KILLED, LOGS_FULL],
)


def with_task(task: TaskRow, **changes: Any) -> Evidence:
    return replace(WHOLE, tasks={**WHOLE.tasks, task.id: replace(task, **changes)})


def with_answer(name: str, **changes: Any) -> Evidence:
    return replace(
        WHOLE, answers=list({**ANSWERS, name: replace(ANSWERS[name], **changes)}.values())
    )


def with_event(
    at: int, type_: str, task_id: str | None = None, status: str | None = None
) -> Evidence:
    """Inserts an entry after this place and renumbers the log."""
    rows = [*WHOLE.events[:at], EventRecord(WS, 0, type_, task_id, status), *WHOLE.events[at:]]
    return replace(
        WHOLE,
        events=[replace(row, seq=seq) for seq, row in enumerate(rows, 1)],
        last_seqs={WS: len(rows)},
    )


def with_payload(seq: int, **changes: Any) -> Evidence:
    """Changes fields of the entry with this number."""
    rows = [replace(row, **changes) if row.seq == seq else row for row in WHOLE.events]
    return replace(WHOLE, events=rows)


def without_event(seq: int) -> Evidence:
    return replace(WHOLE, events=[row for row in WHOLE.events if row.seq != seq])


# Two faults that overlap, and one that excuses nothing.
AWAY = [
    Hit(Fault(2.0, Kind.FREEZE, Target.FLEET, 2.0, 0), missed=False, began=102.0, ended=104.0),
    Hit(Fault(3.0, Kind.FILL, Target.DATABASE, 2.0, 0), missed=False, began=103.0, ended=105.0),
    Hit(Fault(8.0, Kind.FREEZE, Target.WORKER_0, 2.0, 0), missed=False, began=108.0, ended=110.0),
]
