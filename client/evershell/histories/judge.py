"""Judges a history."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evershell.histories import streams
from evershell.histories.claims import Claims, Place, claims
from evershell.histories.lines import Call, History, read
from evershell.histories.model import Effect, Known, Operation, seqs_since_first
from evershell.histories.search import shortest, unexplained

_NO_ORDER = "no order of the calls explains these answers"


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Answers that cannot all be right."""

    # Empty if the answers are not about a single workspace.
    workspace_id: str
    rule: str
    # The calls, messages and deliveries that contradict each other.
    seen: list[str]

    def __str__(self) -> str:
        where = f"{self.workspace_id}: " if self.workspace_id else ""
        return "\n  ".join([f"{where}{self.rule}:", *self.seen])


def judge(history: History) -> list[Contradiction]:
    """Finds the contradictions. Reports _NO_ORDER at most once for each workspace."""
    split = claims(history)
    known = Known(frozenset(split.limited), split.seqs)
    found = [
        Contradiction("", rule, [str(each) for each in seen])
        for rule, seen in streams.contradictions(history)
    ]
    for place, operations in split.operations.items():
        conflicts = [*_two_ends(operations), *_out_of_order(operations, split.seqs)]
        if not conflicts and unexplained(operations, known) is not None:
            few = shortest(operations, known)
            conflicts = [(_NO_ORDER, _with_submission(few, operations))]
        found += (_contradiction(place, rule, seen) for rule, seen in conflicts)
    found += _late_children(split)
    return found


def _contradiction(place: Place, rule: str, seen: Sequence[Operation]) -> Contradiction:
    in_order = sorted(seen, key=lambda each: each.began)
    # Several operations may come from the same call. The call is shown only once.
    return Contradiction(place[1], rule, list(dict.fromkeys(str(each.source) for each in in_order)))


def _two_ends(operations: Sequence[Operation]) -> Iterator[tuple[str, list[Operation]]]:
    ends: dict[str, tuple[str, Operation]] = {}
    for each in operations:
        for fact in each.facts:
            if fact.status:
                status, first = ends.setdefault(fact.task, (fact.status, each))
                if status != fact.status:
                    yield "a task ends once, with a single status", [first, each]


def _out_of_order(
    operations: Sequence[Operation], seqs: Mapping[str, int]
) -> Iterator[tuple[str, list[Operation]]]:
    """Yields the first pair of submissions that contradicts the order of the tasks in the log."""
    submissions = {each.task: each for each in operations if each.effect is Effect.SUBMIT}
    unknown = (each for each in operations if each.effect is Effect.SUBMIT_UNKNOWN)
    # The earliest submission that was not answered. It may have submitted any of the tasks that
    # have no answered submission.
    lost = min(unknown, key=lambda each: each.began, default=None)
    tasks = {task for each in operations for task in each.tasks(known=True)}
    in_order = seqs_since_first(submissions, tasks, seqs)
    later: Operation | None = None
    for task in sorted(in_order, key=in_order.__getitem__, reverse=True):
        submission = submissions.get(task, lost)
        if submission is None:
            continue
        if later is not None and later.ended < submission.began:
            yield (
                f"{task} is in the log before a task whose submission came earlier",
                [
                    later,
                    submission,
                ],
            )
            return
        if task in submissions and (later is None or submission.ended < later.ended):
            later = submission


def _with_submission(few: Sequence[Operation], operations: Sequence[Operation]) -> list[Operation]:
    """If `few` is a single operation, adds the submissions of the tasks that it names."""
    tasks = {task for each in few for task in each.tasks()} if len(few) == 1 else ()
    submissions = [each for each in operations if each.effect is Effect.SUBMIT]
    return [*(each for each in submissions if each.task in tasks), *few]


def _late_children(split: Claims) -> Iterator[Contradiction]:
    """Yields each child that was submitted although its parent was cancelled or had ended."""
    over: dict[str, Operation] = {}
    for operations in split.operations.values():
        for each in operations:
            for task in _over(each):
                if task not in over or each.ended < over[task].ended:
                    over[task] = each
    for submission, parent in split.children:
        settled = over.get(parent)
        if settled is not None and settled.ended < submission.began:
            rule = f"{submission.task} was submitted as a child of {parent}, which was over"
            yield Contradiction("", rule, [str(settled.source), str(submission.source)])


def _over(operation: Operation) -> Iterator[str]:
    """The tasks that, according to the operation, were cancelled or had ended."""
    if operation.effect in (Effect.ACCEPT, Effect.ASK, Effect.SWEEP) and not operation.is_optional:
        yield operation.task
    for fact in operation.facts:
        if fact.name in ("asked", "ended", "asked or ended"):
            yield fact.task


def verdict(*paths: Path) -> tuple[str, list[str]]:
    """The verdict on these files as one history, and its contradictions."""
    history = read(paths)
    found = [str(each) for each in judge(history)]
    return f"{_size(history)}: {f'{len(found)} CONTRADICTIONS' if found else 'right'}", found


def _size(history: History) -> str:
    """The size of the history, in words."""
    cancelled = sum(_is_accepted(each) for each in history.calls)
    open_calls = sum(each.answer is None and not each.error for each in history.calls)
    seen = sum(len(each.messages) for each in history.calls)
    return (
        f"{len(history.calls)} calls, {cancelled} cancellations accepted, "
        f"{open_calls} calls without an answer, {seen} messages of streams, "
        f"{len(history.deliveries)} deliveries"
    )


def _is_accepted(call: Call) -> bool:
    return call.answer is not None and call.answer.get("outcome") == "accepted"
