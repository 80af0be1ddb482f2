"""The checks of the verdict on what stops many tasks, or stops one by itself.

These are calls of CancelTasks and HoldOrg for the whole organization, and limits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.faults.long.chaos.answers import Answer
from tests.faults.long.chaos.evidence import Evidence, TaskRow

# These begin something, which a hold refuses.
_BEGIN = ("SubmitTask", "ResumeWorkspace")


def limit_reason(task: TaskRow) -> str:
    """The reason of the cancellation at the limit of its duration. Empty without a limit."""
    return (
        "" if task.limit_seconds is None else f"max_duration reached: {task.limit_seconds:.12g} s"
    )


def stops_reach_every_task(evidence: Evidence) -> Iterator[str]:
    """A call that leaves none over has cancelled every task that ran from before until after it."""
    submitted = {
        answer.body["task_id"]: answer.answered
        for answer in evidence.answers
        if answer.rpc == "SubmitTask" and not answer.slug
    }
    for answer in evidence.answers:
        if not answer.is_complete_stop:
            continue
        for task in evidence.tasks.values():
            ran_from = submitted.get(task.id, float("inf"))
            is_cancelled = (task.cancel_requested_at or float("inf")) <= answer.answered
            has_ended = (task.completed_at or float("inf")) <= answer.answered
            if ran_from < answer.sent and not (is_cancelled or has_ended):
                yield f"{task.id} ran, and was not cancelled by {answer}, which left none over"


@dataclass(frozen=True, slots=True)
class _Hold:
    """A hold, and the times of its calls. It may be in force from `sent` to `released`."""

    call: Answer
    # When the first release was sent, and when one was answered.
    releasing: float
    released: float

    @property
    def is_sure(self) -> bool:
        """Whether it is in force from its answer until the first release is sent."""
        return not self.call.slug


def _holds(evidence: Evidence) -> Iterator[_Hold]:
    """The emergencies are played one after another, so releases follow their hold."""
    calls = [answer for answer in evidence.answers if answer.rpc in ("HoldOrg", "ReleaseOrg")]
    for index, call in enumerate(calls):
        if call.rpc != "HoldOrg":
            continue
        releases = []
        for later in calls[index + 1 :]:
            if later.rpc == "HoldOrg":
                break
            releases.append(later)
        answered = [release.answered for release in releases if not release.slug]
        yield _Hold(
            call,
            releases[0].sent if releases else float("inf"),
            answered[0] if answered else float("inf"),
        )


def nothing_begins_during_a_hold(evidence: Evidence) -> Iterator[str]:
    for hold in filter(lambda hold: hold.is_sure, _holds(evidence)):
        for answer in evidence.answers:
            is_within = hold.call.answered <= answer.sent and answer.answered <= hold.releasing
            if answer.rpc in _BEGIN and not answer.slug and is_within:
                yield f"{answer} succeeded during the hold of {hold.call}"


def refusals_have_a_hold(evidence: Evidence) -> Iterator[str]:
    holds = list(_holds(evidence))
    for answer in evidence.answers:
        if answer.slug == "org_on_hold" and not any(
            hold.call.sent <= answer.answered and answer.sent <= hold.released for hold in holds
        ):
            yield f"{answer} was refused without a hold: {dict(answer.body)}"


def limits_are_enforced(evidence: Evidence) -> Iterator[str]:
    """A task that has reached its limit ends `cancelled`."""
    for task in evidence.tasks.values():
        if task.limit_reached_at is not None and task.cancel_requested_at is None:
            yield f"{task.id} of {task.workspace_id} has reached its limit, and is {task.status}"
