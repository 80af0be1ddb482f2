"""The checks of the verdict that are about time: when a task has to have ended, and what may fail
at which moment.
"""

from collections.abc import Iterator, Sequence

from tests.exhaustive.chaos.evidence import Evidence, TaskRow
from tests.exhaustive.chaos.faults import Hit
from tests.exhaustive.chaos.plan import Stopped, Target

# What a call may answer only while something is wrong.
_TROUBLE = frozenset({"agent_unreachable", "unavailable", "deadline_exceeded"})
# From the natural end of the iteration on, beside the time for which the control plane was away: an
# agent and the workers that are frozen one after the other, and a heartbeat.
LATE_SECONDS = 10.0
# After a fault is over: until everything serves again as if it had not been.
RECOVERED_SECONDS = 5.0
# An agent that is stopped for good is lost when its lease is over.
LEASE_SECONDS = 30.0
# From the force deadline on, the control plane leaves the agent this long to end its task itself.
FORCE_MARGIN_SECONDS = 2.0
# Then it finds the task, ends the processes of the pod and commits. On a machine with six times as
# much work as it can do, while ten other pods ended, that took 5.2 s.
FORCE_SLACK_SECONDS = 6.0
# That needs these. After a fault of one of them is over, the next look at all workspaces comes
# within this time, and agents are left 3 s to commit what they could not commit during an outage of
# the database.
_FORCING = (Target.FLEET, Target.DATABASE, Target.BACKEND)
_NEXT_LOOK_SECONDS = 1.5 + 3.0


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
                    f"{task.id} of {task.workspace_id} ended {late:.1f} s after its iteration's natural end, "
                    f"of which the control plane was away for {away:.1f} s"
                )


def forced_ends_are_in_time(evidence: Evidence) -> Iterator[str]:
    """An iteration goes on beyond the force deadline by the margin, and by the time for which the
    control plane was away.
    """
    for task in evidence.tasks.values():
        overdue = task.overdue_seconds or 0.0
        if overdue > FORCE_MARGIN_SECONDS + FORCE_SLACK_SECONDS:
            away = away_seconds(evidence.hits, task.force_at or 0.0, task.completed_at or 0.0)
            if overdue > FORCE_MARGIN_SECONDS + FORCE_SLACK_SECONDS + away:
                yield (
                    f"{task.id} of {task.workspace_id}, whose agent was stopped {task.agent_stopped}, ended {overdue:.1f} s after "
                    f"its force deadline, of which the control plane was away for {away:.1f} s"
                )


def away_seconds(hits: Sequence[Hit], since: float, until: float) -> float:
    """How much of this time faults took that keep the control plane from ending a task."""
    away, covered = 0.0, since
    for hit in sorted(hits, key=lambda hit: hit.began):
        if hit.fault.target in _FORCING and not hit.missed:
            began, ended = max(hit.began, covered), min(hit.ended + _NEXT_LOOK_SECONDS, until)
            away += max(0.0, ended - began)
            covered = max(covered, ended)
    return away


def forced_ends_say_so(evidence: Evidence) -> Iterator[str]:
    """Where only the control plane can have broken the iteration off, too."""
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
            yield f"{task.id} of {task.workspace_id} was broken off after its force deadline, and its end does not say so"


def _hit_the_agent_of(task: TaskRow, hit: Hit) -> bool:
    return (
        hit.workspace_id == task.workspace_id
        and task.submitted_at < hit.ended
        and hit.began < (task.completed_at or 0.0)
    )


def trouble_has_a_cause(evidence: Evidence) -> Iterator[str]:
    """Full logs are none: nothing fails for them."""
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
    """Whether something was wrong then, or shortly before: a fault, or a tool of the workspace that
    had stopped its agent.
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
