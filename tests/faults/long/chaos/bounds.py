"""The checks of the verdict on time: when a task must have ended, and when a call may fail."""

from collections.abc import Iterator, Sequence

from tests.faults.long.chaos.evidence import Evidence, TaskRow
from tests.faults.long.chaos.faults import Hit
from tests.faults.long.chaos.plan import Stopped, Target

# A call may answer these only during a fault, or shortly after one.
_TROUBLE = frozenset({"agent_unreachable", "unavailable", "deadline_exceeded"})
# How long after the natural end of its iteration a cancelled task may end, besides the time for
# which the control plane was away. Covers an agent and workers that are frozen in succession, and
# one heartbeat.
LATE_SECONDS = 20.0
# How long after a fault everything must serve again.
RECOVERED_SECONDS = 5.0
# An agent that stays stopped is lost when its lease expires.
LEASE_SECONDS = 30.0
# How long after the force deadline the control plane leaves the agent to end its task itself.
FORCE_MARGIN_SECONDS = 2.0
# How long the fleet controller may then take to end the task: it finds the task in its next scan,
# 1 s later at most, ends the processes of the pod (of a workspace that is stopping, with 3 s of
# grace) and commits. Without the force deadline, it would end the task with the lease.
FORCE_SLACK_SECONDS = 20.0
# The controller cannot do that during a fault of one of these. An agent that is cut off commits
# nothing, and no iteration of it ends.
_FORCING = (
    Target.FLEET,
    Target.DATABASE,
    Target.BACKEND,
    Target.CONTROLLERS_DATABASE,
    Target.WORKERS_DATABASE,
    Target.WORKERS_AGENTS,
)
# How long after such a fault it may take to find an overdue task again: 1.5 s for the next scan of
# all workspaces, and the 3 s that agents have to commit what they could not commit during an outage
# of the database.
_NEXT_SCAN_SECONDS = 1.5 + 3.0


def ends_are_in_time(evidence: Evidence) -> Iterator[str]:
    for task in evidence.tasks.values():
        late = task.late_seconds or 0.0
        allowed = LATE_SECONDS + (LEASE_SECONDS if task.agent_stopped == Stopped.FOR_GOOD else 0.0)
        if late > allowed:
            away = away_seconds(
                evidence.hits, task.cancel_requested_at or 0.0, task.completed_at or 0.0
            )
            if late > allowed + away:
                yield (
                    f"{task.id} of {task.workspace_id} ended {late:.1f} s after its iteration's "
                    f"natural end, of which the control plane was away for {away:.1f} s"
                )


def forced_ends_are_in_time(evidence: Evidence) -> Iterator[str]:
    """A task ends within the margin and the slack after its force deadline.

    The time for which the control plane was away does not count.
    """
    for task in evidence.tasks.values():
        overdue = task.overdue_seconds or 0.0
        if overdue > FORCE_MARGIN_SECONDS + FORCE_SLACK_SECONDS:
            away = away_seconds(evidence.hits, task.force_at or 0.0, task.completed_at or 0.0)
            if overdue > FORCE_MARGIN_SECONDS + FORCE_SLACK_SECONDS + away:
                yield (
                    f"{task.id} of {task.workspace_id}, whose agent was stopped "
                    f"{task.agent_stopped}, ended {overdue:.1f} s after its force deadline, "
                    f"of which the control plane was away for {away:.1f} s"
                )


def away_seconds(hits: Sequence[Hit], since: float, until: float) -> float:
    """How long, from `since` to `until`, faults kept the control plane from ending a task."""
    away, covered = 0.0, since
    for hit in sorted(hits, key=lambda hit: hit.began):
        if hit.fault.target in _FORCING and not hit.missed:
            began, ended = max(hit.began, covered), min(hit.ended + _NEXT_SCAN_SECONDS, until)
            away += max(0.0, ended - began)
            covered = max(covered, ended)
    return away


def forced_ends_say_so(evidence: Evidence) -> Iterator[str]:
    """A task is `forced` even if only the control plane can have broken its iteration off."""
    for task in evidence.tasks.values():
        by_control_plane = (
            task.agent_stopped == Stopped.FOR_GOOD
            and (task.overdue_seconds or 0.0) > FORCE_MARGIN_SECONDS
        )
        if (
            by_control_plane
            and not task.forced
            and not any(_hit_the_agent_of(task, hit) for hit in evidence.hits)
        ):
            yield (
                f"{task.id} of {task.workspace_id} was broken off after its force deadline, "
                "and its end does not say so"
            )


def _hit_the_agent_of(task: TaskRow, hit: Hit) -> bool:
    return (
        hit.workspace_id == task.workspace_id
        and task.submitted_at < hit.ended
        and hit.began < (task.completed_at or 0.0)
    )


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
