"""The checks of a chaos run, as pure functions over answers, rows and observed processes.

Each check yields one line for each violation.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps

from tests.faults.long.chaos.answers import BARE, HUNG_UP, NO_ANSWER, NO_CONNECTION, Answer
from tests.faults.long.chaos.causes import trouble_has_a_cause
from tests.faults.long.chaos.evidence import Evidence
from tests.faults.long.chaos.faults import Hit
from tests.faults.long.chaos.plan import Kind, Target, Wire
from tests.faults.long.chaos.stops import (
    limit_reason,
    limits_are_enforced,
    nothing_begins_during_a_hold,
    refusals_have_a_hold,
    stops_reach_every_task,
)
from tests.support.promises.history import TERMINAL, History
from tests.support.promises.promises import PROMISES

# The slugs that a stack under faults may answer. The credentials and requests of the load are
# valid, so any other slug, such as `unauthenticated`, is a defect.
ALLOWED_SLUGS = frozenset(
    {
        "",
        HUNG_UP,
        "workspace_stopped",
        "workspace_failed",
        "workspace_provisioning",
        "workspace_busy",
        "org_on_hold",
        "invalid_state",
        "agent_unreachable",
        "unavailable",
        "deadline_exceeded",
    }
)
# How long clients take to reconnect after the service is back.
RECONNECT_SECONDS = 10.0
STOP_REASON = "workspace stopped"


def violations(evidence: Evidence) -> list[str]:
    """Returns one line for each violation of any check."""
    return [violation for check in CHECKS for violation in check(evidence)]


def all_ended(evidence: Evidence) -> Iterator[str]:
    for task in evidence.tasks.values():
        if task.status not in TERMINAL:
            yield f"{task.id} of {task.workspace_id} has not ended: {task.status}"


def accepted_once(evidence: Evidence) -> Iterator[str]:
    accepted = Counter(
        task_id for answer in evidence.answers for task_id in answer.accepted_task_ids
    )
    yield from (
        f"{task_id} was answered accepted {count} times"
        for task_id, count in accepted.items()
        if count > 1
    )


def intents_are_of_their_calls(evidence: Evidence) -> Iterator[str]:
    """A call cancels one task of its workspace, or those of the organization.

    The task names the call that was accepted, or the limit that it has reached.
    """
    calls = {answer.call: answer for answer in evidence.answers if answer.may_cancel}
    used: dict[str, str] = {}
    for task in evidence.tasks.values():
        reason = task.cancel_reason
        if reason is None or reason in (STOP_REASON, limit_reason(task)):
            continue
        call = calls.get(reason)
        if call is not None and not call.workspace_id:
            continue
        if (
            call is None
            or call.workspace_id != task.workspace_id
            or call.task_id not in ("", task.id)
        ):
            yield f"{task.id} was cancelled by {reason!r}, which did not ask for that"
        if reason in used:
            yield f"{reason} cancelled both {used[reason]} and {task.id}"
        used[reason] = task.id
    for answer in calls.values():
        for task_id in answer.accepted_task_ids:
            accepted = evidence.tasks.get(task_id)
            if accepted is not None and accepted.cancel_reason != answer.call:
                yield (
                    f"{accepted.id}: accepted was answered to {answer}, "
                    f"but the task names {accepted.cancel_reason!r}"
                )


def answers_told_the_truth(evidence: Evidence) -> Iterator[str]:
    submitted = {
        answer.body["task_id"]: answer.answered
        for answer in evidence.answers
        if answer.rpc == "SubmitTask" and not answer.slug
    }
    for answer in evidence.answers:
        reported = answer.told_task
        task = evidence.tasks.get(str(reported.get("id")))
        if reported and task is None:
            yield f"{answer} reported an unknown task: {reported.get('id')}"
        if task is not None and reported["status"] in TERMINAL:
            if reported["status"] != task.status:
                yield (
                    f"{task.id}: {answer} reported the end {reported['status']}, "
                    f"but its status is {task.status}"
                )
            if task.completed_at is not None and task.completed_at > answer.answered:
                yield f"{task.id}: {answer} reported the end before it happened"
        if answer.outcome == "already_finished" and reported.get("status") not in TERMINAL:
            yield (
                f"{answer} reported already_finished for {answer.task_id}, "
                f"which is {reported.get('status')}"
            )
        if answer.is_cancel and answer.status == "200" and reported.get("status") not in TERMINAL:
            yield (
                f"{answer} was answered 200 while its task had not ended: {reported.get('status')}"
            )
        if answer.outcome == "no_active_task":
            for other in evidence.tasks.values():
                ran_from = submitted.get(other.id, float("inf"))
                if (
                    other.workspace_id == answer.workspace_id
                    and ran_from < answer.sent
                    and (other.completed_at or 0) > answer.answered
                ):
                    yield f"{answer} reported no_active_task, but {other.id} ran the whole time"


def answers_are_in_form(evidence: Evidence) -> Iterator[str]:
    for answer in evidence.answers:
        if answer.problem:
            yield f"{answer}: {answer.problem}"
        elif answer.slug == NO_ANSWER:
            yield f"{answer} was not answered in {answer.answered - answer.sent:.1f} s"
        elif answer.slug in (NO_CONNECTION, BARE):
            if not any(_may_show(answer, hit) for hit in evidence.hits):
                yield (
                    f"{answer}: {answer.slug} {answer.status} with nothing killed: "
                    f"{dict(answer.body)}"
                )
        elif answer.slug not in ALLOWED_SLUGS:
            yield f"{answer}: {answer.status} {answer.slug} {dict(answer.body)}"


def _between(wire: str) -> tuple[Target, ...]:
    """Returns the targets whose faults may reach a caller on this wire without an envelope.

    Over REST, only a fault of Envoy does: it wraps the faults of workers into the envelope. Over
    gRPC, Envoy itself reports that no worker serves, and workers do not serve without their
    database.
    """
    return {
        Wire.REST: (Target.ENVOY,),
        Wire.GRPC: (
            Target.ENVOY,
            Target.WORKER_0,
            Target.WORKER_1,
            Target.DATABASE,
            Target.BACKEND,
            Target.EDGE_WORKERS,
            Target.WORKERS_DATABASE,
        ),
        Wire.WORKER_0: (Target.WORKER_0,),
        Wire.WORKER_1: (Target.WORKER_1,),
    }[Wire(wire)]


def _may_show(answer: Answer, hit: Hit) -> bool:
    if answer.status == "CANCELLED" and (
        hit.fault.kind is not Kind.RESTART or hit.fault.target is Target.ENVOY
    ):
        return False
    is_between = hit.fault.target in _between(answer.wire)
    return (
        is_between and answer.sent < hit.ended + RECONNECT_SECONDS and hit.began < answer.answered
    )


def force_was_asked_for(evidence: Evidence) -> Iterator[str]:
    """A forced end has a forcing cancellation, a StopWorkspace or a forcing limit as its cause."""
    for task in evidence.tasks.values():
        calls = [answer for answer in evidence.answers if answer.workspace_id == task.workspace_id]
        forcing = [answer for answer in calls if answer.forces and answer.task_id in ("", task.id)]
        if (
            task.forced
            and not task.is_forced_at_limit
            and not forcing
            and not any(answer.rpc == "StopWorkspace" for answer in calls)
        ):
            yield f"{task.id} of {task.workspace_id} was interrupted, but no caller asked for that"


def stopped_work_has_stopped(evidence: Evidence) -> Iterator[str]:
    """No tool works after an end that says that the work has stopped."""
    for task in evidence.tasks.values():
        late = (task.last_worked_at or 0.0) - (task.completed_at or 0.0)
        if task.work_stopped == "yes" and late > 0:
            yield (
                f"{task.id} of {task.workspace_id} ended, and its work stopped; "
                f"a tool was at work {late:.2f} s later"
            )


def all_came_back(evidence: Evidence) -> Iterator[str]:
    for hit in evidence.hits:
        if not hit.came_back:
            yield (
                f"{hit.fault.target} did not come back after {hit.fault.kind} "
                f"at {hit.fault.at_seconds} s"
            )


def nothing_was_seen(evidence: Evidence) -> Iterator[str]:
    yield from evidence.seen


def _of_history(
    promise: Callable[[History], Iterator[str]],
) -> Callable[[Evidence], Iterator[str]]:
    @wraps(promise)
    def check(evidence: Evidence) -> Iterator[str]:
        return promise(evidence.history)

    return check


CHECKS = (
    *map(_of_history, PROMISES),
    all_ended,
    accepted_once,
    intents_are_of_their_calls,
    answers_told_the_truth,
    trouble_has_a_cause,
    answers_are_in_form,
    force_was_asked_for,
    stops_reach_every_task,
    nothing_begins_during_a_hold,
    refusals_have_a_hold,
    limits_are_enforced,
    stopped_work_has_stopped,
    all_came_back,
    nothing_was_seen,
)
