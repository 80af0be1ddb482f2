"""Looks for an order of the operations of a workspace in which every answer is right.

This is Wing and Gong's linearizability search with Lowe's memoization. The search goes through the
beginnings and ends of operations in order of time. It keeps pairs of a state and the set of open
operations that have had their effect. A pair that several orders reach is followed only once. When
an operation ends, the search drops the pairs in which it cannot have had its effect. If no pair is
left, there is no order. The cost depends on how many operations overlap: while no operation is
open, the pairs differ only in their states.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence

from evershell.histories.model import (
    Effect,
    Known,
    Operation,
    State,
    Tasks,
    after,
    by_itself,
    possible_tasks,
    seqs_since_first,
)

# A state, and a bit mask of the open operations that have happened.
_Pair = tuple[State, int]
_NOTHING = Known()


def unexplained(operations: Sequence[Operation], known: Known = _NOTHING) -> Operation | None:
    """The first operation whose answer no order explains; None if an order explains all answers."""
    return _Search(operations, known).run()


class _Search:
    def __init__(self, operations: Sequence[Operation], known: Known) -> None:
        self._operations = operations
        self._tasks = _tasks(operations, known)
        unknown = (each for each in operations if each.effect is Effect.SUBMIT_UNKNOWN)
        since = min((each.began for each in unknown), default=math.inf)
        # Tasks that existed before the history, because no submission in it can have created them.
        older = frozenset(task for task, named in self._tasks.orphans.items() if named < since)
        self._pairs: set[_Pair] = {(State(ended=older), 0)}
        # The open operations without an effect, by their bits.
        self._facts: dict[int, Operation] = {}
        # The open operations with an effect, by their bits.
        self._effects: dict[int, Operation] = {}
        self._free_bits: list[int] = []
        self._next_bit = 1

    def run(self) -> Operation | None:
        moments = [(each.began, 0, i) for i, each in enumerate(self._operations)]
        moments += [(each.ended, 1, i) for i, each in enumerate(self._operations)]
        moments.sort()
        bits: dict[int, int] = {}
        for _, is_end, index in moments:
            operation = self._operations[index]
            if not is_end:
                bits[index] = self._begin(operation)
                continue
            bit = bits.pop(index)
            happened = self._happened(bit)
            if not happened and not operation.is_optional:
                return operation
            self._pairs = happened | self._pairs if operation.is_optional else happened
            self._end(operation, bit)
        return None

    def _begin(self, operation: Operation) -> int:
        if self._free_bits:
            bit = self._free_bits.pop()
        else:
            bit, self._next_bit = self._next_bit, self._next_bit << 1
        if operation.effect is None:
            self._facts[bit] = operation
            self._pairs = {
                (state, done | bit if operation.holds(state) else done)
                for state, done in self._pairs
            }
        else:
            self._effects[bit] = operation
        return bit

    def _end(self, operation: Operation, bit: int) -> None:
        self._facts.pop(bit, None)
        self._effects.pop(bit, None)
        self._free_bits.append(bit)
        over = set[str]()
        for task in operation.tasks():
            self._tasks.uses[task] -= 1
            if not self._tasks.uses[task]:
                over.add(task)
        self._pairs = {
            (state._replace(ended=state.ended - over) if over else state, done & ~bit)
            for state, done in self._pairs
        }

    def _happened(self, bit: int) -> set[_Pair]:
        """Extends each pair until the operation has happened. Returns the resulting pairs."""
        found = {pair for pair in self._pairs if pair[1] & bit}
        left = deque(pair for pair in self._pairs if not pair[1] & bit)
        if not left:
            return found
        groups, facts, optional = list(self._alike()), sum(self._facts), self._optional()
        seen: defaultdict[State, list[int]] = defaultdict(list)
        for state, done in self._pairs:
            seen[state].append(done)
        while left:
            for pair in self._next(left.popleft(), groups):
                state, done = pair
                if any(_is_as_good(other, done, facts, optional) for other in seen[state]):
                    continue
                seen[state].append(done)
                if done & bit:
                    found.add(pair)
                else:
                    left.append(pair)
        return _best(found, facts, optional)

    def _next(self, pair: _Pair, groups: list[list[int]]) -> Iterator[_Pair]:
        state, done = pair
        for new in by_itself(state, self._tasks):
            yield new, self._noted(new, done)
        for group in groups:
            # Of several operations with the same effect, tries only the operation that ends first.
            bit = next((each for each in group if not done & each), 0)
            if not bit:
                continue
            operation = self._effects[bit]
            for new in after(state, operation, self._tasks):
                if new != state or not operation.is_optional:
                    yield new, self._noted(new, done | bit)

    def _noted(self, state: State, done: int) -> int:
        """Adds to `done` the open facts that are true in this state: waiting has no advantage."""
        for bit, operation in self._facts.items():
            if not done & bit and operation.holds(state):
                done |= bit
        return done

    def _alike(self) -> Iterator[list[int]]:
        """Groups the open effects.

        Optional effects that change the state in the same way are in the same group.
        """
        groups: dict[object, list[int]] = {}
        for bit, operation in self._effects.items():
            key: object = (operation.effect, operation.task) if operation.is_optional else bit
            if operation.effect is Effect.SUBMIT_UNKNOWN:
                key = frozenset(possible_tasks(operation, self._tasks))
            groups.setdefault(key, []).append(bit)
        for group in groups.values():
            yield sorted(group, key=lambda bit: self._effects[bit].ended)

    def _optional(self) -> int:
        """The bits of the optional effects that are open."""
        return sum(bit for bit, each in self._effects.items() if each.is_optional)


def _best(pairs: set[_Pair], facts: int, optional: int) -> set[_Pair]:
    """The pairs without those that another pair can replace."""
    by_state: dict[State, list[int]] = {}
    for state, done in pairs:
        by_state.setdefault(state, []).append(done)
    return {
        (state, done)
        for state, all_done in by_state.items()
        for done in all_done
        if not any(
            other != done and _is_as_good(other, done, facts, optional) for other in all_done
        )
    }


def _is_as_good(other: int, done: int, facts: int, optional: int) -> bool:
    """Whether a pair with the operations `other` can replace a pair with the operations `done`.

    Both pairs have the same state. `other` must include all facts of `done`, no optional effect
    that is not in `done`, and the same required effects. It must not have more required effects:
    a stop that happened before the task began can no longer cancel the task.
    """
    required = ~facts & ~optional
    return not ((done & facts & ~other) | (other & optional & ~done) | ((other ^ done) & required))


def _tasks(operations: Iterable[Operation], known: Known) -> Tasks:
    uses, submitted = Counter[str](), set[str]()
    tasks = Tasks()
    for each in operations:
        if each.effect is Effect.SUBMIT:
            submitted.add(each.task)
        for fact in each.facts:
            if fact.status:
                tasks.status[fact.task] = fact.status
        uses.update(each.tasks())
        for task in each.tasks(known=True):
            tasks.orphans[task] = min(each.ended, tasks.orphans.get(task, each.ended))
    for task in submitted:
        tasks.orphans.pop(task, None)
    tasks.seqs = seqs_since_first(submitted, uses, known.seqs)
    in_order = sorted(tasks.orphans.items(), key=lambda each: tasks.seqs.get(each[0], math.inf))
    tasks.orphans = dict(in_order)
    tasks.limited = known.limited | tasks.orphans.keys()
    tasks.uses = dict(uses)
    return tasks


def shortest(operations: Sequence[Operation], known: Known) -> list[Operation]:
    """Returns few answers that no order explains. Without any one of them, an order would exist.

    The calls whose answers are left out may still have had their effects.
    """
    last = unexplained(operations, known)
    assert last is not None, "there is an order"
    until = last.ended
    begun = [each for each in operations if each.began <= until]
    kept = [each for each in begun if not each.is_optional and each.ended <= until]
    size = len(kept)
    while size:
        for first in range(0, len(kept), size):
            fewer = kept[:first] + kept[first + size :]
            if unexplained(_without(begun, fewer), known) is not None:
                kept = fewer
                break
        else:
            size //= 2
            continue
        size = min(size, len(kept))
    return kept


def _without(begun: Sequence[Operation], kept: Sequence[Operation]) -> list[Operation]:
    """`begun` without the answers of the calls that are not in `kept`.

    An operation that is not in `kept` becomes optional, or is left out if it has no effect.
    """
    wanted = {id(each) for each in kept}
    return [
        each
        if each.is_optional or id(each) in wanted
        else Operation(
            each.source, each.began, each.ended, each.effect, each.task, is_optional=True
        )
        for each in begun
        if each.effect or id(each) in wanted
    ]
