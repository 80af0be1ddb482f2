"""What has to hold at the end, as pure functions over what was answered, what is in the database
and what was seen of processes.

Each check yields a line for each violation.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps

from tests.exhaustive.chaos.answers import BARE, HUNG_UP, NO_ANSWER, NO_CONNECTION, Answer
from tests.exhaustive.chaos.bounds import (
    ends_are_in_time,
    forced_ends_are_in_time,
    forced_ends_say_so,
    trouble_has_a_cause,
)
from tests.exhaustive.chaos.evidence import Evidence
from tests.exhaustive.chaos.faults import Hit
from tests.exhaustive.chaos.plan import Kind, Target, Wire
from tests.promises.history import TERMINAL, History
from tests.promises.promises import PROMISES

# What a stack in trouble may answer to these callers; another slug would mean that it has taken one
# for someone else.
ALLOWED_SLUGS = frozenset(
    {
        "",
        HUNG_UP,
        "workspace_stopped",
        "workspace_failed",
        "workspace_provisioning",
        "workspace_busy",
        "invalid_state",
        "agent_unreachable",
        "unavailable",
        "deadline_exceeded",
    }
)
# The clients' own connections need as long to come back after the service has.
RECONNECT_SECONDS = 2.0
STOP_REASON = "workspace stopped"


def violations(evidence: Evidence) -> list[str]:
    """Everything that does not hold."""
    return [violation for check in CHECKS for violation in check(evidence)]


def all_ended(evidence: Evidence) -> Iterator[str]:
    for task in evidence.tasks.values():
        if task.status not in TERMINAL:
            yield f"{task.id} of {task.workspace_id} has not ended: {task.status}"


def accepted_once(evidence: Evidence) -> Iterator[str]:
    accepted = Counter(
        answer.body["task_id"] for answer in evidence.answers if answer.outcome == "accepted"
    )
    yield from (
        f"{task_id} was answered accepted {count} times"
        for task_id, count in accepted.items()
        if count > 1
    )


def intents_are_of_their_calls(evidence: Evidence) -> Iterator[str]:
    """A call cancels one task, of its workspace, the one that it names; and whoever is told
    `accepted` is whom the task names.
    """
    calls = {answer.call: answer for answer in evidence.answers if answer.is_cancel}
    used: dict[str, str] = {}
    for task in evidence.tasks.values():
        reason = task.cancel_reason
        if reason is None or reason == STOP_REASON:
            continue
        call = calls.get(reason)
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
        accepted = (
            evidence.tasks.get(answer.body["task_id"]) if answer.outcome == "accepted" else None
        )
        if accepted is not None and accepted.cancel_reason != answer.call:
            yield f"{accepted.id}: accepted was answered to {answer}, and it names {accepted.cancel_reason!r}"


def answers_told_the_truth(evidence: Evidence) -> Iterator[str]:
    submitted = {
        answer.body["task_id"]: answer.answered
        for answer in evidence.answers
        if answer.rpc == "SubmitTask" and not answer.slug
    }
    for answer in evidence.answers:
        told = answer.told_task
        task = evidence.tasks.get(str(told.get("id")))
        if told and task is None:
            yield f"{answer} was shown a task that is not there: {told.get('id')}"
        if task is not None and told["status"] in TERMINAL:
            if told["status"] != task.status:
                yield f"{task.id}: {answer} was told that it had ended {told['status']}, and it is {task.status}"
            if task.completed_at is not None and task.completed_at > answer.answered:
                yield f"{task.id}: {answer} was told its end before it was"
        if answer.outcome == "already_finished" and told.get("status") not in TERMINAL:
            yield f"{answer} was told already_finished of {answer.task_id}, which is {told.get('status')}"
        if answer.is_cancel and answer.status == "200" and told.get("status") not in TERMINAL:
            yield f"{answer} was answered 200 while its task had not ended: {told.get('status')}"
        if answer.outcome == "no_active_task":
            for other in evidence.tasks.values():
                ran_from = submitted.get(other.id, float("inf"))
                if (
                    other.workspace_id == answer.workspace_id
                    and ran_from < answer.sent
                    and (other.completed_at or 0) > answer.answered
                ):
                    yield f"{answer} was told no_active_task, and {other.id} ran all the while"


def answers_are_in_form(evidence: Evidence) -> Iterator[str]:
    for answer in evidence.answers:
        if answer.problem:
            yield f"{answer}: {answer.problem}"
        elif answer.slug == NO_ANSWER:
            yield f"{answer} was not answered in {answer.answered - answer.sent:.1f} s"
        elif answer.slug in (NO_CONNECTION, BARE):
            if not any(_may_show(answer, hit) for hit in evidence.hits):
                yield f"{answer}: {answer.slug} {answer.status} with nothing killed: {dict(answer.body)}"
        elif answer.slug not in ALLOWED_SLUGS:
            yield f"{answer}: {answer.status} {answer.slug} {dict(answer.body)}"


def _between(wire: str) -> tuple[Target, ...]:
    """Whose trouble a caller may see as it is. Over REST that of the edge alone; the workers' comes
    in the envelope.

    Over gRPC the edge says itself that no worker serves, which workers do not without their
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
    """By a cancellation that may have met the task, or by the end of its workspace."""
    for task in evidence.tasks.values():
        calls = [answer for answer in evidence.answers if answer.workspace_id == task.workspace_id]
        forcing = [answer for answer in calls if answer.forces and answer.task_id in ("", task.id)]
        if (
            task.forced
            and not forcing
            and not any(answer.rpc == "StopWorkspace" for answer in calls)
        ):
            yield f"{task.id} of {task.workspace_id} was broken off, and nobody asked for that"


def all_came_back(evidence: Evidence) -> Iterator[str]:
    for hit in evidence.hits:
        if not hit.came_back:
            yield f"{hit.fault.target} did not come back after {hit.fault.kind} at {hit.fault.at_seconds} s"


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
    ends_are_in_time,
    forced_ends_are_in_time,
    forced_ends_say_so,
    trouble_has_a_cause,
    answers_are_in_form,
    force_was_asked_for,
    all_came_back,
    nothing_was_seen,
)
