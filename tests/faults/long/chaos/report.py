"""The report that a run prints."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from tests.faults.long.chaos.answers import Answer
from tests.faults.long.chaos.bounds import away_seconds
from tests.faults.long.chaos.evidence import Evidence, TaskRow
from tests.faults.long.chaos.plan import Kind, Plan, Stopped, Wire
from tests.faults.long.chaos.run import Outcome
from tests.support import small_disk

_MAX_LINES_PER_KIND = 3
# Violations of one kind differ only in these: request ids, other ids and numbers.
_VARIABLE_PARTS = re.compile(
    r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b(task|ws)_\w+|[0-9]+"
)


def plan_lines(plan: Plan) -> Iterator[str]:
    """Describes the plan, before the run."""
    yield (
        f"seed {plan.seed}: {plan.seconds:g} s, {len(plan.rounds)} workspaces, "
        f"{len(plan.faults)} faults"
    )


def lines(outcome: Outcome) -> Iterator[str]:
    """Describes what has happened, after the run."""
    evidence = outcome.evidence
    yield from _cancels(outcome)
    yield ""
    hits = Counter((f"{hit.fault.kind} {hit.fault.target}", hit.missed) for hit in evidence.hits)
    yield f"{'fault':24}    hit  missed"
    fills = any(fault.kind is Kind.FILL for fault in outcome.plan.faults)
    if fills and (reason := small_disk.refusal()):
        yield f"no disk was filled: {reason}"
    for name in sorted({name for name, _ in hits}):
        yield f"{name:24} {hits[name, False]:6} {hits[name, True]:7}"
    yield ""
    slugs = Counter(
        (answer.slug or answer.outcome or "success", answer.rpc == "CancelTask")
        for answer in evidence.answers
    )
    yield f"{'answer':24} cancel  others"
    for slug in sorted({slug for slug, _ in slugs}):
        yield f"{slug:24} {slugs[slug, True]:6} {slugs[slug, False]:7}"
    yield ""
    ended = Counter(task.status for task in evidence.tasks.values())
    yield f"tasks: {len(evidence.tasks)}, " + ", ".join(
        f"{count} {status}" for status, count in sorted(ended.items())
    )
    yield f"events: {len(evidence.events)}"
    calls = Counter(answer.rpc for answer in evidence.answers if not answer.workspace_id)
    limits = [task for task in evidence.tasks.values() if task.limit_reached_at is not None]
    yield (
        f"for the whole organization: {calls['CancelTasks']} CancelTasks, {calls['HoldOrg']} "
        f"HoldOrg; tasks that reached their limit: {len(limits)}"
    )
    yield (
        f"quiet {outcome.settled_seconds:.1f} s after the last fault and call; "
        f"the stack stopped in {outcome.stop_seconds:.1f} s"
    )
    stopped = Counter(
        (task.agent_stopped, task.overdue_seconds is not None) for task in evidence.tasks.values()
    )
    for how in (Stopped.FOR_A_WHILE, Stopped.FOR_GOOD):
        yield (
            f"agents stopped {how} by a tool: {stopped[how, True]} in tasks with a force deadline, "
            f"{stopped[how, False]} others"
        )
    unknown = sum(task.work_stopped == "unknown" for task in evidence.tasks.values())
    yield f"ends of which it is unknown whether the work has stopped: {unknown}"
    overdue = _longest_wait(evidence, lambda task: (task.force_at, task.overdue_seconds))
    yield f"longest from a force deadline to the end, {overdue}"
    late = _longest_wait(evidence, lambda task: (task.cancel_requested_at, task.late_seconds))
    yield (
        "longest from a recorded cancellation to the end, beyond the natural end of an iteration, "
        f"{late}"
    )
    at_once = [answer for answer in evidence.answers if answer.is_cancel and not answer.waits]
    yield f"longest answer to a cancellation that does not wait: {_longest(at_once):.2f} s"
    yield from _holdings(outcome)


def hit_lines(outcome: Outcome) -> Iterator[str]:
    """Yields one line for each fault, in the order of time."""
    for hit in sorted(outcome.evidence.hits, key=lambda hit: hit.began):
        began = datetime.fromtimestamp(hit.began, UTC).isoformat(timespec="milliseconds")
        how = "missed" if hit.missed else f"{hit.ended - hit.began:.3f} s"
        yield f"{began} {hit.fault.kind} {hit.fault.target} {hit.workspace_id} {how}"


def _longest_wait(
    evidence: Evidence, wait: Callable[[TaskRow], tuple[float | None, float | None]]
) -> str:
    """Describes the longest wait. `wait` returns when the wait of a task began, and its seconds."""

    def beyond(task: TaskRow) -> float:
        since, seconds = wait(task)
        return (seconds or 0.0) - away_seconds(
            evidence.hits, since or 0.0, task.completed_at or 0.0
        )

    longest = max(evidence.tasks.values(), key=beyond)
    return (
        "beyond the time for which the control plane was away: "
        f"{max(0.0, beyond(longest)):.2f} s ({longest.id})"
    )


def violation_lines(violations: Iterable[str]) -> Iterator[str]:
    """Yields the first violations of each kind, and the number of the others.

    One defect may break a promise in every call.
    """
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for violation in violations:
        kinds[_VARIABLE_PARTS.sub("", violation)].append(violation)
    for alike in sorted(kinds.values(), key=len):
        yield from alike[:_MAX_LINES_PER_KIND]
        if len(alike) > _MAX_LINES_PER_KIND:
            yield f"  and {len(alike) - _MAX_LINES_PER_KIND} more like the last one"


def _cancels(outcome: Outcome) -> Iterator[str]:
    """Yields the table of cancellations by wire.

    A task counts once for each wire over which its end was promised.
    """
    tasks = outcome.evidence.tasks
    yield (
        f"{'cancellations':24}   sent  accepted  ended cancelled  promised (tasks)  ended cancelled"
    )
    for wire in [*Wire, None]:
        sent = [
            answer
            for answer in outcome.evidence.answers
            if answer.is_cancel and wire in (None, answer.wire)
        ]
        accepted = [task_id for answer in sent for task_id in answer.accepted_task_ids]
        promised = {task_id for answer in sent for task_id in answer.promised_task_ids}
        yield (
            f"{wire or 'all':24} {len(sent):6} {len(accepted):9} "
            f"{_cancelled(tasks, accepted):16} {len(promised):17} {_cancelled(tasks, promised):16}"
        )


def _cancelled(tasks: Mapping[str, TaskRow], ids: Iterable[str]) -> int:
    return sum(task_id in tasks and tasks[task_id].status == "cancelled" for task_id in ids)


def _longest(answers: Sequence[Answer]) -> float:
    return max((answer.answered - answer.sent for answer in answers), default=0.0)


def _holdings(outcome: Outcome) -> Iterator[str]:
    before, after = outcome.before, outcome.after
    if after is None:
        return
    yield (
        f"connections to the database: {before.connections} before, {after.connections} after, "
        f"{outcome.allowed_connections} allowed"
    )
    yield f"processes: {before.processes} before, {after.processes} after"
    open_files = ", ".join(
        f"{program} {count} → {after.descriptors[program]}"
        for program, count in before.descriptors.items()
    )
    yield f"open files, the most of one process: {open_files}"
