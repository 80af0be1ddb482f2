"""Submits, ends, cancels and removes trees of tasks at random, on each store.

A model predicts the answer of each call, and which tasks exist and have an intent afterwards.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from evershell.core import task_lifecycle, task_tree
from evershell.core.change import Change, Locked
from evershell.core.errors import Failure
from evershell.core.workspace import Workspace
from evershell.store.publish import publish_to_nobody
from tests.faults.invariants.clock import Clock
from tests.faults.invariants.product import OpenStores
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

# The last workspace belongs to another user.
_WORKSPACES = 6
_PLACE = st.integers(0, _WORKSPACES - 1)
# Selects a task by its age: the newest task has the age 0. Runs are short, so the range is small.
_AGE = st.integers(0, 4)


@dataclass
class Node:
    """What the model expects of a task."""

    id: str
    place: int
    parent: "Node | None"
    # The `seq` of the task's first event in the log of its workspace.
    first_seq: int
    is_open: bool = True
    is_cancelled: bool = False
    is_removed: bool = False
    # When the task ended, in seconds of this test's own clock.
    ended_at: int = 0

    def is_below(self, other: "Node") -> bool:
        return self.parent is not None and (self.parent is other or self.parent.is_below(other))

    @property
    def root(self) -> "Node":
        return self if self.parent is None else self.parent.root


def _time(second: int) -> datetime:
    return NOW + timedelta(seconds=second)


class TreeMachine(RuleBasedStateMachine):
    """Workspaces of two users, with the tasks in them."""

    def __init__(self, open_stores: OpenStores) -> None:
        super().__init__()
        self._runner, self._resources = asyncio.Runner(), AsyncExitStack()
        self._nodes: list[Node] = []
        self._seconds = 0
        opening = open_stores(self._resources, publish_to_nobody, Clock())
        self._store, _ = self._runner.run(opening)
        users = [USER] * (_WORKSPACES - 1) + ["user_2"]
        self._workspaces = [workspace(user_id=user_id) for user_id in users]
        for each in self._workspaces:
            self._runner.run(self._store.create_workspace(each))
        # A chain of three tasks, and a child of the root task in the other user's workspace.
        for place, parent in ((0, None), (1, 0), (2, 0), (_WORKSPACES - 1, 2)):
            self.submit(place, parent)

    @rule(place=_PLACE, parent=st.none() | _AGE)
    def submit(self, place: int, parent: int | None) -> None:
        of = None if parent is None else self._node(parent)
        may = of is None or (of.is_open and not of.is_cancelled)
        is_idle = not any(each.is_open and each.place == place for each in self._nodes)
        new = task(self._workspaces[place].id)

        def decide(locked: Locked) -> Change:
            child = new
            if of is not None:
                parent = task_tree.check_parent(locked.parent, of.id, permission())
                child = task_tree.child(parent, new)
            return task_lifecycle.submit(locked, child, USER)

        submission = self._store.transition(new.workspace_id, decide, ORG, of.id if of else None)
        try:
            self._runner.run(submission)
        except Failure as failure:
            refusal = "workspace_busy" if may else "parent_not_running"
            if of is not None and of.is_removed:
                refusal = "task_not_found"
            assert failure.slug == refusal
            assert not (may and is_idle)
        else:
            assert may and is_idle
            at = self._workspaces[place].id
            self._nodes.append(Node(new.id, place, of, self._workspace(at).last_seq))

    @rule(age=_AGE, includes_descendants=st.booleans(), own_only=st.booleans())
    def cancel(self, age: int, includes_descendants: bool, own_only: bool) -> None:
        named = self._node(age)
        if named is None:
            return
        below = [each for each in self._nodes if each.is_open and each.is_below(named)]
        included = below if includes_descendants else []
        record = self._store.record_cancellation
        if includes_descendants:
            record = self._store.cancel_tree
        at = self._workspaces[named.place].id
        call = record(permission(own_only=own_only), at, named.id, intent())
        recorded = self._runner.run(call)
        if own_only and any(each.place == _WORKSPACES - 1 for each in (named, *included)):
            assert (recorded.outcome, recorded.descendants_cancelled) == ("permission_denied", 0)
            return
        outcome = "already_requested" if named.is_cancelled else "accepted"
        if not named.is_open:
            outcome = "task_not_found" if named.is_removed else "already_finished"
        assert recorded.outcome == outcome
        new = [each for each in included if not each.is_cancelled]
        assert recorded.descendants_cancelled == len(new)
        for each in (*new, *([named] if named.is_open else [])):
            each.is_cancelled = True

    @rule(age=_AGE)
    def end(self, age: int) -> None:
        node = self._node(age)
        if node is not None and node.is_open:
            self._seconds += 1
            node.is_open, node.ended_at = False, self._seconds
            at = self._workspaces[node.place]
            self._runner.run(complete(self._store, at, node.id, _time(self._seconds)))

    @rule(kept=st.integers(0, 2), limit=st.sampled_from([1, 2, 3, 100]))
    def remove_old(self, kept: int, limit: int) -> None:
        """Removes all ended tasks in batches, except for the `kept` tasks that ended last.

        In each workspace, the removal stops at the first task that must stay: a task that ended too
        late, or whose tree has an open task.
        """
        before = self._seconds - kept + 1
        for place, at in enumerate(self._workspaces):
            after_seq, count = 0, limit
            while count == limit:
                removing = self._store.remove_old_tasks(at.id, _time(before), after_seq, limit)
                removed = self._runner.run(removing)
                after_seq, count = removed.last_seq, removed.events
            for node in self._kept(place):
                is_open = any(each.is_open for each in self._nodes if each.root is node.root)
                if is_open or node.ended_at >= before:
                    break
                node.is_removed = True

    @invariant()
    def the_intents_are_those_of_the_model(self) -> None:
        for node in self._nodes:
            at = self._workspaces[node.place].id
            found = self._runner.run(self._store.get_task(at, node.id))
            assert (found is None) == node.is_removed, node
            if found is None:
                continue
            assert (found.cancel is not None) == node.is_cancelled, node
            assert found.status.is_terminal != node.is_open, node

    @invariant()
    def a_log_begins_with_the_first_task_that_is_there(self) -> None:
        for place, at in enumerate(self._workspaces):
            last_seq = self._workspace(at.id).last_seq
            kept = self._kept(place)
            first_seq = kept[0].first_seq if kept else last_seq + 1
            events = self._runner.run(self._store.list_events(at.id, 0, 1_000))
            assert [event.seq for event in events] == list(range(first_seq, last_seq + 1))

    def _kept(self, place: int) -> list[Node]:
        """The tasks of a workspace that have not been removed, oldest first."""
        return [each for each in self._nodes if each.place == place and not each.is_removed]

    def _workspace(self, workspace_id: str) -> Workspace:
        found = self._runner.run(self._store.get_workspace(workspace_id))
        assert found is not None
        return found

    def _node(self, age: int) -> Node | None:
        return self._nodes[-1 - age] if age < len(self._nodes) else None

    def teardown(self) -> None:
        self._runner.run(self._resources.aclose())
        self._runner.close()
