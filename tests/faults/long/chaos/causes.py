"""The check of the verdict on causes: when calls and tasks may fail."""

from collections.abc import Iterator

from tests.faults.long.chaos.evidence import Evidence
from tests.faults.long.chaos.faults import Hit
from tests.faults.long.chaos.plan import Stopped, Target

# A call may answer these only during a fault, or shortly after one.
_TROUBLE = frozenset({"agent_unreachable", "unavailable", "deadline_exceeded"})
# How long after a fault everything must serve again.
RECOVERED_SECONDS = 5.0


def trouble_has_a_cause(evidence: Evidence) -> Iterator[str]:
    """Calls and tasks fail only because of a fault. A full disk of the logs is not a cause."""
    for answer in evidence.answers:
        if answer.slug in _TROUBLE and not _has_cause(
            evidence, answer.workspace_id, answer.sent, answer.answered
        ):
            yield f"{answer}: {answer.status} {answer.slug} with nothing wrong: {dict(answer.body)}"
    for task in evidence.tasks.values():
        ended = task.completed_at or 0.0
        if task.status in ("failed", "delivery_failed") and not _has_cause(
            evidence, task.workspace_id, ended, ended
        ):
            yield f"{task.id} of {task.workspace_id} {task.status} with nothing wrong"


def _has_cause(evidence: Evidence, workspace_id: str, since: float, until: float) -> bool:
    """Whether a failure in this time can be explained.

    A cause is a fault, or a tool of the workspace that has stopped its agent, in that time or
    shortly before.
    """
    if any(
        hit.began < until and since < hit.ended + RECOVERED_SECONDS
        for hit in evidence.hits
        if _does_harm(hit)
    ):
        return True
    stopped = [task for task in evidence.tasks.values() if task.agent_stopped != Stopped.NEVER]
    return any(
        task.workspace_id == workspace_id
        and task.submitted_at < until
        and (task.completed_at is None or since < task.completed_at + RECOVERED_SECONDS)
        for task in stopped
    )


def _does_harm(hit: Hit) -> bool:
    return not hit.missed and hit.fault.target is not Target.LOGS
