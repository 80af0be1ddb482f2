"""The report that a run prints."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

from tests.faults.long.chaos.plan import Kind, Plan, Wire
from tests.faults.long.chaos.run import Outcome
from tests.support import small_disk


def plan_line(plan: Plan) -> str:
    """Describes the plan, before the run."""
    return (
        f"seed {plan.seed}: {plan.seconds:g} s, {len(plan.rounds)} workspaces, "
        f"{len(plan.faults)} faults"
    )


def lines(outcome: Outcome) -> Iterator[str]:
    """Describes what has happened, after the run."""
    evidence = outcome.evidence
    tasks = evidence.tasks
    yield f"{'cancellations':24}   sent  promised (tasks)  ended cancelled"
    for wire in [*Wire, None]:
        sent = [each for each in evidence.answers if each.is_cancel and wire in (None, each.wire)]
        # A task counts once for each wire over which its end was promised.
        promised = {task_id for answer in sent for task_id in answer.promised_task_ids}
        kept = sum(id_ in tasks and tasks[id_].status == "cancelled" for id_ in promised)
        yield f"{wire or 'all':24} {len(sent):6} {len(promised):17} {kept:16}"
    yield ""
    hits = Counter((f"{hit.fault.kind} {hit.fault.target}", hit.missed) for hit in evidence.hits)
    yield f"{'fault':24}    hit  missed"
    for name in sorted({name for name, _ in hits}):
        yield f"{name:24} {hits[name, False]:6} {hits[name, True]:7}"
    fills = any(fault.kind is Kind.FILL for fault in outcome.plan.faults)
    if fills and (reason := small_disk.refusal()):
        yield f"no disk was filled: {reason}"
    yield ""
    slugs = Counter(
        (answer.slug or answer.outcome or "success", answer.rpc == "CancelTask")
        for answer in evidence.answers
    )
    yield f"{'answer':24} cancel  others"
    for slug in sorted({slug for slug, _ in slugs}):
        yield f"{slug:24} {slugs[slug, True]:6} {slugs[slug, False]:7}"
    yield ""
    ended = Counter(task.status for task in tasks.values())
    yield f"tasks: {len(tasks)}, " + ", ".join(
        f"{count} {status}" for status, count in sorted(ended.items())
    )
    yield (
        f"quiet {outcome.settled_seconds:.1f} s after the last fault and call; "
        f"the stack stopped in {outcome.stop_seconds:.1f} s"
    )


def hit_lines(outcome: Outcome) -> Iterator[str]:
    """Yields one line for each fault, in the order of time."""
    for hit in sorted(outcome.evidence.hits, key=lambda hit: hit.began):
        began = datetime.fromtimestamp(hit.began, UTC).isoformat(timespec="milliseconds")
        how = "missed" if hit.missed else f"{hit.ended - hit.began:.3f} s"
        yield f"{began} {hit.fault.kind} {hit.fault.target} {hit.workspace_id} {how}"
