"""Evidence of emergencies and limits: without a violation, and with one each."""

from dataclasses import replace
from typing import Any

from tests.faults.long.chaos.answers import Answer
from tests.faults.long.chaos.evidence import Evidence
from tests.faults.long.chaos.examples import CANCELLED, COMPLETED, WHOLE, answer, with_task


def with_calls(*calls: Answer, evidence: Evidence = WHOLE) -> Evidence:
    return replace(evidence, answers=[*evidence.answers, *calls])


def for_org(call: str, rpc: str, sent: float, **changes: Any) -> Answer:
    return answer(call, rpc, sent, **{"workspace_id": "", "status": "200", **changes})


def batch(sent: float, *results: dict[str, str], remaining: int = 0) -> Answer:
    body = {"results": results, "remaining": remaining}
    return for_org("batch", "CancelTasks", sent, status="202", body=body)


HELD = for_org("hold", "HoldOrg", 107.5, body={"remaining": 0})
RELEASED = for_org("release", "ReleaseOrg", 109.0)
REFUSED = answer(
    "call 20", "SubmitTask", 108.0, status="409", slug="org_on_hold", body={"hold_reason": "hold"}
)
ADMITTED = answer("call 21", "ResumeWorkspace", 108.0, status="202")
LIMITED = replace(
    CANCELLED,
    started_at=100.5,
    limit_seconds=0.5,
    cancel_reason="max_duration reached: 0.5 s",
)
BY_LIMIT = replace(
    with_task(LIMITED), answers=[each for each in WHOLE.answers if each.call != "call 1"]
)

SOUND_STOPS: dict[str, Evidence] = {
    "a batch that names what was cancelled before": with_calls(
        batch(101.1, {"task_id": "task_1", "outcome": "already_requested"})
    ),
    "a batch that leaves some over": with_calls(batch(105.5, remaining=1)),
    "a refusal during a hold": with_calls(HELD, REFUSED, RELEASED),
    "a success that may have come before the hold": with_calls(
        HELD, replace(ADMITTED, sent=107.55), RELEASED
    ),
    "a success when the release was sent": with_calls(
        HELD, replace(ADMITTED, answered=109.05), RELEASED
    ),
    "a cancellation by a limit": BY_LIMIT,
    "a forced end at a limit": replace(
        BY_LIMIT,
        tasks=with_task(LIMITED, forced=True, force_at=101.1, is_forced_at_limit=True).tasks,
        events=[replace(row, forced=row.seq == 6) for row in WHOLE.events],
    ),
}
BROKEN_STOPS: dict[str, tuple[Evidence, str]] = {
    "a batch that leaves out a task": (
        with_calls(batch(105.5)),
        "task_2 ran, and was not cancelled by batch",
    ),
    "a hold that leaves out a task": (
        with_calls(replace(HELD, sent=105.5, answered=105.6, cancels=True)),
        "task_2 ran, and was not cancelled by hold",
    ),
    "a batch that accepts what it does not cancel": (
        with_calls(batch(105.5, {"task_id": "task_2", "outcome": "accepted"}, remaining=1)),
        "but its status is completed",
    ),
    "a success during a hold": (
        with_calls(HELD, ADMITTED, RELEASED),
        "succeeded during the hold of hold",
    ),
    "a refusal without a hold": (with_calls(REFUSED), "was refused without a hold"),
    "a refusal after the release": (
        with_calls(HELD, RELEASED, replace(REFUSED, sent=110.0, answered=110.1)),
        "was refused without a hold",
    ),
    "a limit that did not decide the end": (
        with_task(COMPLETED, started_at=105.0, limit_seconds=0.5),
        "has reached its limit, and is completed",
    ),
    "a limit that was found late": (
        with_task(CANCELLED, started_at=75.0, limit_seconds=2.0),
        "was cancelled 24.0 s after its limit was reached, of which",
    ),
    "a limit that the task does not have": (
        with_task(CANCELLED, cancel_reason="max_duration reached: 0.5 s"),
        "which did not ask for that",
    ),
}
