"""The invariants of a workspace hold after any sequence of changes.

These agents also report what a correct agent never reports: an end before the start, iterations out
of order, another task, an earlier epoch. tests/faults/invariants covers correct agents and callers.
"""

from collections.abc import Callable

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.agent_rules import BreachError
from evershell.core.caller import Permission
from evershell.core.change import Change, Locked
from evershell.core.errors import Failure
from evershell.core.event import Event
from evershell.core.task import (
    AgentEvent,
    CancelIntent,
    Phase,
    Task,
    TaskEnded,
    TaskStarted,
    TaskStatus,
)
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.fakes import FakeStore
from tests.support.world import USER, FakeClock, caller, finish, intent, iteration, task, workspace

REFUSALS = {
    "workspace_busy",
    "workspace_provisioning",
    "workspace_stopped",
    "workspace_failed",
    "invalid_state",
}
# Now and then an agent of the previous epoch is still alive.
EPOCHS_BEHIND = st.sampled_from([0, 0, 0, 0, 1])
# Mostly the last task, sometimes the one before it.
WHICH = st.sampled_from([-1, -1, -1, -2])


class LifecycleMachine(RuleBasedStateMachine):
    """One workspace and all its tasks, in a store in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.store = FakeStore()
        self.clock = FakeClock()
        self.workspace_id = ""
        self.task_ids: list[str] = []
        # The first intent of each task whose cancellation was accepted, by task id.
        self.accepted: dict[str, CancelIntent] = {}
        # Each ended task as it was at its end, by task id.
        self.ended: dict[str, Task] = {}
        self.run_number = 1

    @initialize()
    def create(self) -> None:
        created = workspace(WorkspaceStatus.PROVISIONING)
        self.workspace_id = created.id
        finish(self.store.create_workspace(created))

    @rule()
    def come_up(self) -> None:
        """Brings up an agent; without this shortcut the other rules would seldom have one."""
        self.resume()
        self.place(0, 0)
        self.register(0)

    @rule()
    def begin(self) -> None:
        """Takes a task to its first iteration."""
        self.come_up()
        self.submit()
        self.deliver(-1)
        self.start(-1, 0)
        self.iterate(-1, 0, 1)

    @rule()
    def submit(self) -> None:
        submitted = task(self.workspace_id)
        if self._change(lambda locked: task_lifecycle.submit(locked, submitted, USER)) is not None:
            self.task_ids.append(submitted.id)

    @rule(which=WHICH)
    def deliver(self, which: int) -> None:
        self._change(lambda locked: task_lifecycle.deliver(locked, self._task_id(which)))

    @rule(which=WHICH)
    def fail_delivery(self, which: int) -> None:
        self._change(
            lambda locked: task_lifecycle.fail_delivery(
                locked, self._task_id(which), "gone", self.clock()
            )
        )

    @rule(which=WHICH, behind=EPOCHS_BEHIND)
    def start(self, which: int, behind: int) -> None:
        self._commit(which, behind, TaskStarted())

    @rule(which=WHICH, behind=EPOCHS_BEHIND, ahead=st.sampled_from([0, 1, 1, 1, 2]))
    def iterate(self, which: int, behind: int, ahead: int) -> None:
        current = self._current()
        self._commit(
            which, behind, iteration((current.iterations if current is not None else 0) + ahead)
        )

    @rule(
        which=WHICH,
        behind=EPOCHS_BEHIND,
        status=st.sampled_from(["completed", "failed", "cancelled"]),
    )
    def end(self, which: int, behind: int, status: str) -> None:
        self._commit(which, behind, TaskStarted(), TaskEnded(status=TaskStatus(status)))

    @rule(reason=st.sampled_from(["a", "b"]), which=st.sampled_from([None, None, -1, -2]))
    def cancel(self, reason: str, which: int | None) -> None:
        task_id = None if which is None else self._task_id(which)
        requested = intent(reason=reason, requested_at=self.clock())
        found = finish(
            self.store.record_cancellation(
                Permission(caller(), ("workspace:write",), own_only=False),
                self.workspace_id,
                task_id,
                requested,
            )
        )
        if found.recorded:
            assert found.task is not None and found.task.cancel == requested
            assert found.task.id not in self.accepted
            self.accepted[found.task.id] = requested

    @rule()
    def stop(self) -> None:
        change = self._change(
            lambda locked: workspace_lifecycle.request_stop(
                locked, intent(requested_at=self.clock())
            )
        )
        if change is not None and change.events:
            assert change.task is not None and change.task.cancel is not None
            self.accepted[change.task.id] = change.task.cancel

    @rule(work_stopped=st.booleans())
    def finish_stop(self, work_stopped: bool) -> None:
        epoch = self._workspace().epoch
        self._change(
            lambda locked: workspace_lifecycle.finish_stop(
                locked, epoch, self.clock(), work_stopped=work_stopped
            )
        )

    @rule()
    def resume(self) -> None:
        self._change(lambda locked: workspace_lifecycle.resume(locked, self.clock()))

    @rule(behind=EPOCHS_BEHIND)
    def register(self, behind: int) -> None:
        epoch = self._workspace().epoch - behind
        self._change(
            lambda locked: workspace_lifecycle.register(
                locked, epoch, "127.0.0.1:1", 30, self.clock()
            )
        )

    @rule(behind=EPOCHS_BEHIND, which=WHICH, phase=st.sampled_from(Phase))
    def heartbeat(self, behind: int, which: int, phase: Phase) -> None:
        epoch = self._workspace().epoch - behind
        self._change(
            lambda locked: workspace_lifecycle.heartbeat(
                locked, epoch, self._task_id(which), phase, 30, self.clock()
            )
        )

    @rule(behind=EPOCHS_BEHIND, work_stopped=st.booleans())
    def lose(self, behind: int, work_stopped: bool) -> None:
        epoch = self._workspace().epoch - behind
        self._change(
            lambda locked: workspace_lifecycle.lose_agent(
                locked, epoch, "lost", self.clock(), work_stopped=work_stopped
            )
        )

    @rule(behind=EPOCHS_BEHIND, restarted=st.sampled_from([0, 0, 1]))
    def place(self, behind: int, restarted: int) -> None:
        self.run_number += restarted
        epoch = self._workspace().epoch - behind
        self._change(
            lambda locked: workspace_lifecycle.place(
                locked, epoch, f"run_{self.run_number}", self.clock(), work_stopped=True
            )
        )

    @invariant()
    def the_log_has_no_gaps(self) -> None:
        events = self._events()
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert self._workspace().last_seq == len(events)

    @invariant()
    def only_ended_tasks_have_an_end_event_and_exactly_one(self) -> None:
        for each in self._tasks():
            ends = [event for event in self._events_of(each.id) if event.type == "task_completed"]
            assert len(ends) == (1 if each.status.is_terminal else 0)
            assert all(event.payload["status"] == each.status for event in ends)
            assert (each.completed_at is not None) == each.status.is_terminal
            if ends:
                assert self._events_of(each.id)[-1] == ends[0]

    @invariant()
    def an_accepted_cancellation_ends_cancelled(self) -> None:
        for each in self._tasks():
            assert (each.cancel is not None) == (each.id in self.accepted)
            if each.id in self.accepted and each.status.is_terminal:
                assert each.status is TaskStatus.CANCELLED

    @invariant()
    def the_first_intent_stays_and_is_in_the_log_once(self) -> None:
        for each in self._tasks():
            requests = [
                event for event in self._events_of(each.id) if event.type == "task_cancel_requested"
            ]
            assert len(requests) == (1 if each.id in self.accepted else 0)
            if each.cancel is not None:
                first = self.accepted[each.id]
                assert (each.cancel.reason, each.cancel.requested_at) == (
                    first.reason,
                    first.requested_at,
                )

    @invariant()
    def an_ended_task_never_changes(self) -> None:
        for each in self._tasks():
            if each.status.is_terminal:
                assert self.ended.setdefault(each.id, each) == each

    @invariant()
    def only_the_current_task_is_open(self) -> None:
        at = self._workspace()
        open_ids = [each.id for each in self._tasks() if not each.status.is_terminal]
        assert open_ids == ([at.current_task_id] if at.current_task_id is not None else [])
        assert (at.current_task_id is not None) == (
            at.status is WorkspaceStatus.BUSY
        ) or at.status is WorkspaceStatus.STOPPING

    @invariant()
    def iterations_are_in_the_log_in_order(self) -> None:
        for each in self._tasks():
            numbers = [
                event.payload["number"]
                for event in self._events_of(each.id)
                if event.type == "iteration_completed"
            ]
            assert numbers == list(range(1, each.iterations + 1))

    def _change(self, decide: Callable[[Locked], Change]) -> Change | None:
        """Makes a change. Returns None if it is refused, by one of REFUSALS or a rule."""
        self.clock.advance(1)
        try:
            return finish(self.store.transition(self.workspace_id, decide))
        except Failure as failure:
            assert failure.slug in REFUSALS
            return None
        except BreachError:
            return None

    def _commit(self, which: int, behind: int, *events: AgentEvent) -> None:
        epoch = self._workspace().epoch - behind
        self._change(
            lambda locked: task_lifecycle.commit(
                locked, epoch, self._task_id(which), events, self.clock()
            )
        )

    def _task_id(self, which: int) -> str:
        return self.task_ids[which] if len(self.task_ids) >= -which else "task_unknown"

    def _workspace(self) -> Workspace:
        found = finish(self.store.get_workspace(self.workspace_id))
        assert found is not None
        return found

    def _current(self) -> Task | None:
        return next((each for each in self._tasks() if not each.status.is_terminal), None)

    def _tasks(self) -> list[Task]:
        found = [
            finish(self.store.get_task(self.workspace_id, task_id)) for task_id in self.task_ids
        ]
        return [each for each in found if each is not None]

    def _events(self) -> list[Event]:
        return list(finish(self.store.list_events(self.workspace_id, 0, 10_000)))

    def _events_of(self, task_id: str) -> list[Event]:
        return [event for event in self._events() if event.task_id == task_id]


LifecycleMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, database=None
)
TestLifecycle = LifecycleMachine.TestCase
