"""The contract of Store: limits of tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from evershell.core import task_lifecycle, task_limits, task_tree
from evershell.core.change import Change, Locked, unchanged
from evershell.core.due import Kind
from evershell.core.ports import Store
from evershell.core.task import OpenIteration, Task, TaskLimits, TaskStarted, Usage
from tests.support.store.due import due, due_ids
from tests.support.store.examples import (
    NOW,
    ORG,
    USER,
    complete,
    intent,
    permission,
    task,
    workspace,
)

MINUTE = TaskLimits(max_duration_seconds=60.25)
DUE = NOW + timedelta(seconds=60.25)
JUST = timedelta(microseconds=1)


async def started(
    store: Store, limits: TaskLimits, *, after: float = 0, parent: Task | None = None
) -> Task:
    """A task with these limits in its own workspace, started `after` seconds after NOW."""
    idle = workspace()
    await store.create_workspace(idle)
    new = replace(task(idle.id), limits=limits, in_limited_tree=limits.include_descendants)

    def submit(locked: Locked) -> Change:
        child = task_tree.child(locked.parent, new) if locked.parent else new
        return task_lifecycle.submit(locked, child, USER)

    await store.transition(idle.id, submit, ORG, parent.id if parent else None)
    at = NOW + timedelta(seconds=after)
    change = await store.transition(
        idle.id, lambda locked: task_lifecycle.commit(locked, 1, new.id, [TaskStarted()], at)
    )
    assert change is not None and change.task is not None
    return change.task


async def test_the_limits_of_a_task_are_stored(store: Store) -> None:
    for limits in (
        TaskLimits(),
        TaskLimits(max_duration_seconds=0.5, max_total_tokens=10**12, force_after_seconds=0),
        TaskLimits(max_cost_nanos=10**15),
    ):
        new = await started(store, limits)
        assert await store.get_task(new.workspace_id, new.id) == new
        assert new.limits == limits


async def test_a_duration_is_reached_when_it_has_passed(store: Store) -> None:
    later = await started(store, MINUTE, after=5)
    first = await started(store, MINUTE)
    await started(store, TaskLimits(max_total_tokens=1))
    waiting = workspace()
    await store.create_workspace(waiting)
    new = replace(task(waiting.id), limits=MINUTE)
    await store.transition(waiting.id, lambda locked: task_lifecycle.submit(locked, new, USER))
    assert await due_ids(store, Kind.TASK_LIMIT, now=DUE - JUST) == []
    assert await due_ids(store, Kind.TASK_LIMIT, now=DUE) == [first.workspace_id]
    both = [first.workspace_id, later.workspace_id]
    assert await due_ids(store, Kind.TASK_LIMIT, now=DUE + timedelta(days=9)) == both
    assert await due_ids(store, Kind.TASK_LIMIT, now=DUE + timedelta(days=9), limit=1) == both[:1]


async def test_what_is_cancelled_or_has_ended_is_not_due(store: Store) -> None:
    ended, cancelled = await started(store, MINUTE), await started(store, MINUTE)
    at = await store.get_workspace(ended.workspace_id)
    assert at is not None
    await complete(store, at, ended.id)
    await store.record_cancellation(permission(), cancelled.workspace_id, None, intent())
    assert await due_ids(store, Kind.TASK_LIMIT, now=DUE) == []


@pytest.mark.parametrize(
    ("force_after", "is_due"), [(None, True), (65.25, False), (65.26, True), (60, False)]
)
async def test_an_earlier_force_deadline_of_a_limit_is_due(
    store: Store, force_after: float | None, is_due: bool
) -> None:
    """The caller's deadline counts from NOW; the limit's deadline is 65.25 s after NOW."""
    new = await started(store, replace(MINUTE, force_after_seconds=5))
    requested = intent(force_after_seconds=force_after)
    await store.record_cancellation(permission(), new.workspace_id, None, requested)
    for _ in range(2):
        found = await due_ids(store, Kind.TASK_LIMIT, now=DUE)
        assert found == ([new.workspace_id] if is_due else [])
        await store.transition(
            new.workspace_id, lambda locked: task_lifecycle.apply_limits(locked, DUE)
        )
        is_due = False
    stored = await store.get_task(new.workspace_id, new.id)
    assert stored is not None and stored.cancel is not None
    assert stored.cancel.reason == intent().reason


async def used(
    store: Store, of: Task, amount: int, cost_nanos: int | None, *, is_open: bool = False
) -> None:
    """Records that the task has used `amount` input tokens and `amount` output tokens.

    If `is_open`, records them for the open iteration of the task.
    """
    usage = Usage(input_tokens=amount, output_tokens=amount, cost_nanos=cost_nanos)
    opened = OpenIteration(number=1, usage=usage, started_calls=[{"id": "call_1"}])

    def decide(locked: Locked) -> Change:
        assert locked.task is not None
        changed: dict[str, Any] = {"open_iteration": opened} if is_open else {"usage": usage}
        return Change(locked.workspace, replace(locked.task, **changed))

    await store.transition(of.workspace_id, decide)


async def started_calls(store: Store, of: Task) -> Sequence[Mapping[str, Any]]:
    """The tool calls of the open iteration, as a change of the task sees them."""
    seen: list[Sequence[Mapping[str, Any]]] = []

    def look(locked: Locked) -> Change:
        assert locked.task is not None and locked.task.open_iteration is not None
        seen.append(locked.task.open_iteration.started_calls)
        return unchanged(locked)

    await store.transition(of.workspace_id, look)
    return seen[-1]


async def end(store: Store, ended: Task) -> None:
    at = await store.get_workspace(ended.workspace_id)
    assert at is not None
    await complete(store, at, ended.id)


async def trees(store: Store) -> list[tuple[str, int, int, int | None]]:
    """The root, the tokens and the cost of each tree that is due."""
    found = []
    for each in await due(store, Kind.TREE_LIMIT):
        assert each.task is not None and each.workspace.id == each.task.workspace_id
        used = each.task.used
        found.append((each.task.id, used.input_tokens, used.output_tokens, used.cost_nanos))
    return found


# A tree with these limits has reached them once it has used one input and one output token.
TREE = TaskLimits(max_total_tokens=2, include_descendants=True)


async def test_the_usage_of_a_tree_is_that_of_all_its_tasks_while_one_is_open(
    store: Store,
) -> None:
    root = await started(store, TREE)
    assert root.limits == TREE
    child = await started(store, TaskLimits(), parent=root)
    leaf = await started(store, TaskLimits(), parent=child)
    assert leaf.in_limited_tree and not leaf.limits.include_descendants
    assert await store.get_task(leaf.workspace_id, leaf.id) == leaf
    # This tree is never due, because its limit does not include descendants.
    other = await started(store, TaskLimits(max_total_tokens=2))
    await started(store, TaskLimits(), parent=other)
    for each, amount, total in ((root, 1, 1), (child, 10, 11), (leaf, 100, 111)):
        await used(store, each, amount, amount * 7)
        # After the end of the root, the tree is still due as long as a descendant is open.
        assert await trees(store) == [(root.id, total, total, total * 7)]
        if each is not leaf:
            await end(store, each)
    await used(store, leaf, 100, None)
    assert await trees(store) == [(root.id, 111, 111, None)]
    await end(store, leaf)
    assert await trees(store) == []


async def test_the_usage_of_a_tree_includes_the_iterations_that_run(store: Store) -> None:
    root = await started(store, TREE)
    child = await started(store, TaskLimits(), parent=root)
    await used(store, root, 1, 7, is_open=True)
    await used(store, child, 10, 70)
    await used(store, child, 100, 700, is_open=True)
    assert await trees(store) == [(root.id, 111, 111, 777)]
    stored = await store.get_task(child.workspace_id, child.id)
    assert stored is not None and stored.open_iteration is not None
    assert await started_calls(store, child) == [{"id": "call_1"}]
    assert (stored.usage.cost_nanos, stored.used.cost_nanos) == (70, 770)
    await used(store, child, 100, None, is_open=True)
    assert await trees(store) == [(root.id, 111, 111, None)]
    await end(store, child)
    assert await trees(store) == [(root.id, 111, 111, None)]


async def test_the_cost_of_a_tree_may_be_more_than_64_bits(store: Store) -> None:
    root = await started(store, TREE)
    for _ in range(2):
        await used(store, await started(store, TaskLimits(), parent=root), 1, 5 * 10**18)
    assert await trees(store) == [(root.id, 2, 2, 10**19)]


@pytest.mark.parametrize("has_root_ended", [False, True])
async def test_a_tree_that_is_cancelled_at_its_limit_is_no_longer_due(
    store: Store, has_root_ended: bool
) -> None:
    root = await started(store, replace(TREE, force_after_seconds=5))
    children = [await started(store, TaskLimits(), parent=root) for _ in range(2)]
    await used(store, children[0], 1, 0)
    if has_root_ended:
        await end(store, root)
    # A caller has cancelled one child, without a force deadline.
    await store.record_cancellation(permission(), children[1].workspace_id, None, intent())
    (found,) = await due(store, Kind.TREE_LIMIT)
    assert found.task is not None
    reached = task_limits.reached(found.task, NOW)
    assert reached is not None
    by = task_limits.service_permission(ORG)
    recorded = await store.cancel_tree(by, root.workspace_id, root.id, reached.intent)
    assert recorded.recorded is not has_root_ended
    assert recorded.descendants_cancelled == 1
    assert await trees(store) == []
    first, second = [await store.get_task(each.workspace_id, each.id) for each in children]
    assert first is not None and first.cancel == reached.intent
    assert second is not None and second.cancel is not None
    assert (second.cancel.reason, second.cancel.force_at) == (
        intent().reason,
        NOW + timedelta(seconds=5),
    )


@pytest.mark.parametrize(
    ("limits", "cost_nanos", "is_due"),
    [
        ({"max_total_tokens": 4}, 7, True),
        ({"max_total_tokens": 5}, 7, False),
        ({"max_cost_nanos": 14}, 7, True),
        ({"max_cost_nanos": 15}, 7, False),
        ({"max_cost_nanos": 15}, None, True),
        ({"max_total_tokens": 5}, None, False),
        ({"max_duration_seconds": 60}, 7, True),
        ({"max_duration_seconds": 60.001}, 7, False),
    ],
)
async def test_a_tree_is_due_when_it_reaches_a_limit(
    store: Store, limits: dict[str, Any], cost_nanos: int | None, is_due: bool
) -> None:
    root = await started(store, TaskLimits(include_descendants=True, **limits))
    for each in (root, await started(store, TaskLimits(), parent=root)):
        await used(store, each, 1, cost_nanos)
    found = await due(store, Kind.TREE_LIMIT, now=NOW + timedelta(seconds=60))
    assert [each.task and each.task.id for each in found] == [root.id] * is_due


async def test_a_tree_whose_tasks_are_all_cancelled_is_not_due(store: Store) -> None:
    root = await started(store, TREE)
    child = await started(store, TaskLimits(), parent=root)
    await used(store, child, 1, 0)
    assert len(await trees(store)) == 1
    await store.cancel_tree(permission(), root.workspace_id, root.id, intent())
    assert await trees(store) == []
    await end(store, root)
    await end(store, child)
    assert await trees(store) == []
