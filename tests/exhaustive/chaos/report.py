"""The table that a run prints."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from tests.exhaustive.chaos.answers import Answer
from tests.exhaustive.chaos.bounds import away_seconds
from tests.exhaustive.chaos.evidence import Evidence, TaskRow
from tests.exhaustive.chaos.plan import Plan, Stopped, Wire
from tests.exhaustive.chaos.run import WORKERS, Outcome
from tests.exhaustive.chaos.sightings import allowed_connections
from tests.support import small_disk

_SHOWN_OF_A_SORT = 3
# What differs between violations of one sort: request ids, ids, and other numbers.
_NUMBERS = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b(task|ws)_\w+|[0-9]+")


def plan_lines(plan: Plan) -> Iterator[str]:
    """What is going to happen."""
    yield f"seed {plan.seed}: {plan.seconds:g} s, {len(plan.rounds)} workspaces, {len(plan.faults)} faults"


def lines(outcome: Outcome) -> Iterator[str]:
    """What has happened."""
    evidence = outcome.evidence
    yield from _cancels(outcome)
    yield ""
    hits = Counter((f"{hit.fault.kind} {hit.fault.target}", hit.missed) for hit in evidence.hits)
    yield f"{'fault':24}    hit  missed"
    if reason := small_disk.refusal():
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
    yield f"quiet {outcome.settled_seconds:.1f} s after the last fault and call; the stack stopped in {outcome.stop_seconds:.1f} s"
    stopped = Counter(
        (task.agent_stopped, task.overdue_seconds is not None) for task in evidence.tasks.values()
    )
    for how in (Stopped.FOR_A_WHILE, Stopped.FOR_GOOD):
        yield f"agents stopped {how} by a tool: {stopped[how, True]} in tasks with a force deadline, {stopped[how, False]} others"
    yield f"longest from a force deadline to the end, {_longest_wait(evidence, lambda task: (task.force_at, task.overdue_seconds))}"
    late = _longest_wait(evidence, lambda task: (task.cancel_requested_at, task.late_seconds))
    yield f"longest from a recorded cancellation to the end, beyond the natural end of an iteration, {late}"
    at_once = [answer for answer in evidence.answers if answer.is_cancel and not answer.waits]
    yield f"longest answer to a cancellation that does not wait: {_longest(at_once):.2f} s"
    yield from _holdings(outcome)


def hit_lines(outcome: Outcome) -> Iterator[str]:
    """The faults in their order."""
    for hit in sorted(outcome.evidence.hits, key=lambda hit: hit.began):
        began = datetime.fromtimestamp(hit.began, UTC).isoformat(timespec="milliseconds")
        how = "missed" if hit.missed else f"{hit.ended - hit.began:.3f} s"
        yield f"{began} {hit.fault.kind} {hit.fault.target} {hit.workspace_id} {how}"


def _longest_wait(
    evidence: Evidence, wait: Callable[[TaskRow], tuple[float | None, float | None]]
) -> str:
    """`wait` says of a task since when it waited, and for how long."""

    def beyond(task: TaskRow) -> float:
        since, seconds = wait(task)
        return (seconds or 0.0) - away_seconds(
            evidence.hits, since or 0.0, task.completed_at or 0.0
        )

    longest = max(evidence.tasks.values(), key=beyond)
    return f"beyond the time for which the control plane was away: {max(0.0, beyond(longest)):.2f} s ({longest.id})"


def violation_lines(violations: Iterable[str]) -> Iterator[str]:
    """The first few of each sort, and how many more there are. A defect may violate a promise in
    every call.
    """
    sorts: defaultdict[str, list[str]] = defaultdict(list)
    for violation in violations:
        sorts[_NUMBERS.sub("", violation)].append(violation)
    for alike in sorted(sorts.values(), key=len):
        yield from alike[:_SHOWN_OF_A_SORT]
        if len(alike) > _SHOWN_OF_A_SORT:
            yield f"  and {len(alike) - _SHOWN_OF_A_SORT} more like the last one"


def _cancels(outcome: Outcome) -> Iterator[str]:
    """By wire: a task counts once for each wire over which its cancellation was promised."""
    tasks = outcome.evidence.tasks
    yield f"{'cancellations':24}   sent  accepted  ended cancelled  promised (tasks)  ended cancelled"
    for wire in [*Wire, None]:
        sent = [
            answer
            for answer in outcome.evidence.answers
            if answer.is_cancel and wire in (None, answer.wire)
        ]
        accepted = [answer.body["task_id"] for answer in sent if answer.outcome == "accepted"]
        promised = {answer.promised_task_id for answer in sent} - {""}
        yield (
            f"{wire or 'all':24} {len(sent):6} {len(accepted):9} {_cancelled(tasks, accepted):16} "
            f"{len(promised):17} {_cancelled(tasks, promised):16}"
        )


def _cancelled(tasks: Mapping[str, TaskRow], ids: Iterable[str]) -> int:
    return sum(task_id in tasks and tasks[task_id].status == "cancelled" for task_id in ids)


def _longest(answers: Sequence[Answer]) -> float:
    return max((answer.answered - answer.sent for answer in answers), default=0.0)


def _holdings(outcome: Outcome) -> Iterator[str]:
    before, after = outcome.before, outcome.after
    if after is None:
        return
    allowed = allowed_connections(WORKERS)
    yield f"connections to the database: {before.connections} before, {after.connections} after, {allowed} allowed"
    yield f"processes: {before.processes} before, {after.processes} after"
    open_files = ", ".join(
        f"{program} {count} → {after.descriptors[program]}"
        for program, count in before.descriptors.items()
    )
    yield f"open files, the most of one process: {open_files}"
