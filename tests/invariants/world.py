"""The product in one process, wired as in production.

The rules control its network and the failures of its database.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from itertools import count
from typing import Any, TypeVar

from evershell.server.core import tasks, workspaces
from evershell.server.core.bounds import Bounds
from evershell.server.core.caller import Caller, CredentialKind
from evershell.server.core.cancel_task import CancelResult, CancelTask, Outcome, cancel_task
from evershell.server.core.cancel_tasks import CancelTasks, cancel_tasks
from evershell.server.core.errors import AgentUnreachableError, Failure, UnavailableError
from evershell.server.core.event import Event, Origin
from evershell.server.core.holds import HoldOrg, hold_org, release_org
from evershell.server.core.ports import UNSIGNALLED, Store
from evershell.server.core.runtime import Runtime
from evershell.server.core.task import Task, TaskLimits
from evershell.server.core.workspace import Workspace, WorkspaceStatus
from evershell.server.fleet.controller import Controller
from evershell.server.store.announce import Announce
from tests.invariants.agent import Agent, Surrounded
from tests.invariants.clock import Clock
from tests.invariants.pods import Changes, Pods
from tests.invariants.record import Call, Record
from tests.invariants.spy_store import SpyStore
from tests.invariants.stage import Stage
from tests.invariants.wire import SLOW_SECONDS, Network, Wire
from tests.support.fakes import FakeWakeups

LEASE_SECONDS = 12.0
# Longer than any run: agents here have no limits, since their calls last until a rule ends them.
BOUNDS = Bounds(
    model_timeout_seconds=150.0, tool_timeout_seconds=150.0, lease_seconds=LEASE_SECONDS
)
# So short that no step contains two heartbeats.
STEP_SECONDS = 0.5
_SCOPES = frozenset({"workspace:read", "workspace:write", "tasks:write", "org:hold"})
CALLER = Caller("org_a", "user_1", CredentialKind.SESSION, _SCOPES)
CALLERS = {"user": CALLER, "program": Caller("org_a", "key_1", CredentialKind.API_KEY, _SCOPES)}
_STATE_SLUGS = {
    WorkspaceStatus.PROVISIONING: "workspace_provisioning",
    WorkspaceStatus.STOPPING: "workspace_stopped",
    WorkspaceStatus.STOPPED: "workspace_stopped",
    WorkspaceStatus.FAILED: "workspace_failed",
}

Returned = TypeVar("Returned")
# Opens the store under test and another session of its database, given what to call after each
# commit and the clock of the leases.
OpenStores = Callable[[AsyncExitStack, Announce, Clock], Coroutine[Any, Any, tuple[Store, Store]]]


class World:
    """One workspace, its agents, one controller, and the callers, in their own event loop."""

    def __init__(self, open_stores: OpenStores) -> None:
        self.clock = Clock()
        self.record = Record()
        self.wakeups = FakeWakeups()
        self.agents: list[Agent] = []
        self.workspace_id = ""
        # Whether a hold is known to be in force, and whether there may be one.
        self.is_held = self.may_be_held = False
        self._request_numbers = count(1)
        self._run_numbers = count(1)
        self._background: set[asyncio.Task[None]] = set()
        self._leading: asyncio.Task[None] | None = None
        # Since when the controller leads; None if none does.
        self.leading_since: datetime | None = None
        self._resources = AsyncExitStack()
        self._stage = Stage(self.clock)
        self._stage.open(self._open(open_stores))

    def run(self, step: Coroutine[Any, Any, Returned]) -> Returned:
        """Runs a step, and everything that follows before the clock advances or a gate opens."""
        return self._stage.run(step)

    async def settle(self) -> None:
        """Returns once every task waits for a rule."""
        await self._stage.settle()

    async def _open(self, open_stores: OpenStores) -> None:
        store, observer = await open_stores(
            self._resources,
            self._announce,
            self.clock,
        )
        self.observer = SpyStore(observer, self.record, self.clock)
        self.store = SpyStore(store, self.record, self.clock)
        self._stage.stores += [self.store, self.observer]
        runtime = Runtime(self.store, self.clock, LEASE_SECONDS)
        self.shared = Surrounded(
            runtime=runtime, store=self.store, record=self.record, clock=self.clock
        )
        self.wire = Wire(self.agents, self.observer, self.record)
        self.pods = Pods(self.agents, self.shared)
        self.run_id = f"run_{next(self._run_numbers)}"
        self.workspace_id = (
            await workspaces.create_workspace(CALLER, "", Origin(), self.store, self.clock)
        ).id
        self.lead()

    def _announce(self, workspace_id: str, *, watched: bool, reconcile: bool) -> None:
        self.wakeups.announce(workspace_id)
        if workspace_id == UNSIGNALLED and self._leading is not None:
            self.changes.announce(workspace_id)

    def close(self) -> None:
        """Ends every call, agent and controller, and closes the stores."""

        async def close() -> None:
            await self.stop_leading()
            await self.wire.close()
            for agent in self.agents:
                if not agent.is_gone:
                    await agent.crash()
            for call in self.record.calls:
                call.runner.cancel()
            for running in self._background:
                running.cancel()
            await self.settle()
            await self._resources.aclose()

        self._stage.close(close())

    def _start(self, call: Coroutine[Any, Any, None]) -> None:
        """Runs a call in the background."""
        running = asyncio.create_task(call)
        self._background.add(running)
        running.add_done_callback(self._background.discard)

    @property
    def task_ids(self) -> list[str]:
        """The ids of all tasks, in the order of their submission."""
        return list(self.store.tasks)

    # What the database holds.

    async def workspace(self) -> Workspace:
        found = await self.observer.get_workspace(self.workspace_id)
        assert found is not None
        return found

    async def tasks(self) -> Sequence[Task]:
        return await self.observer.list_tasks(self.workspace_id, None, 1_000)

    async def events(self) -> Sequence[Event]:
        return await self.observer.list_events(self.workspace_id, 0, 10_000)

    async def task(self, task_id: str | None) -> Task | None:
        return (
            await self.observer.get_task(self.workspace_id, task_id)
            if task_id is not None
            else None
        )

    # What callers do.

    async def submit(self, limits: TaskLimits | None = None) -> None:
        """Submits a task. Records a failure if an idle and healthy agent had to accept it."""
        before = await self.workspace()
        is_free = (
            before.status is WorkspaceStatus.IDLE
            and self.wire.network is Network.GOOD
            and self._agent_is_free(before)
        )
        due = (
            is_free
            and self.wire.reaches(before)
            and not self.store.hiccups
            and not self.may_be_held
        )
        number = next(self._request_numbers)
        request = tasks.SubmitTask(
            workspace_id=before.id,
            description=f"task {number}",
            limits=limits or TaskLimits(),
            origin=Origin(f"submit_{number}"),
        )

        async def call() -> None:
            is_held = self.is_held
            try:
                task = await tasks.submit_task(CALLER, request, self.store, self.wire, self.clock)
                if is_held:
                    self.record.defects.append(AssertionError(f"submitted during a hold: {task}"))
            except (Failure, UnavailableError) as failure:
                if due:
                    self.record.refused_submits.append(f"{request.origin.request_id}: {failure}")

        self._start(call())

    def _agent_is_free(self, at: Workspace) -> bool:
        """Whether the agent ended its last task itself, and holds no other task.

        A late message may have started another task.
        """
        last = self.task_ids[-1] if self.task_ids else None
        current = [agent for agent in self.agents if agent.epoch == at.epoch]
        if any(agent.fault for agent in current):
            return False
        held_task_ids = [agent.session.task_id for agent in current]
        return held_task_ids in ([""], [last]) and (
            last is None or self.record.ended_by_agent.get(last) == at.epoch
        )

    async def cancel(
        self,
        by: Caller,
        *,
        task_id: str | None = None,
        reason: str = "",
        wait_seconds: float | None = None,
        force_after_seconds: float | None = None,
        times: int = 1,
    ) -> None:
        """Starts `times` concurrent calls in the background."""
        at = await self.workspace()
        target = await self.task(task_id or at.current_task_id)
        expected = (
            None if self.store.hiccups else self._expected(at, target, named=task_id is not None)
        )
        if times > 1 and expected is not None and target is not None:
            # The first call may have ended the task before the last is handled.
            expected |= {"no_active_task"}
        target_id = target.id if target is not None else None
        now = self.clock()
        force_at = (
            None if force_after_seconds is None else now + timedelta(seconds=force_after_seconds)
        )
        for _ in range(times):
            request_id = f"cancel_{next(self._request_numbers)}"
            request = CancelTask(
                workspace_id=at.id,
                task_id=task_id or "",
                reason=reason,
                wait_seconds=wait_seconds,
                origin=Origin(request_id),
                force_after_seconds=force_after_seconds,
            )
            runner = asyncio.create_task(
                cancel_task(by, request, self.store, self.wire, self.wakeups, self.clock)
            )
            call = Call(
                request_id=request_id,
                by=by,
                asked_at=now,
                target_id=target_id,
                wait_seconds=wait_seconds,
                signal_seconds=SLOW_SECONDS if self.wire.network is Network.SLOW else 0.0,
                force_at=force_at,
                expected=expected,
                drains_before=self.record.drains,
                runner=runner,
            )
            self.record.calls.append(call)
            self._start(self._note_answer(call))

    def _expected(self, at: Workspace, target: Task | None, *, named: bool) -> frozenset[str]:
        """Returns the correct answers, by the contract's order of checks."""
        if named and target is None:
            return frozenset({"task_not_found"})
        if target is not None and target.status.is_terminal:
            return frozenset({"already_finished"})
        if at.status in _STATE_SLUGS:
            return frozenset({_STATE_SLUGS[at.status]})
        if target is None:
            return frozenset({"no_active_task"})
        outcomes = (
            {"already_requested"}
            if target.cancel is not None
            else {"accepted", "already_requested"}
        )
        return frozenset(outcomes if self.wire.reaches(at) else {*outcomes, "agent_unreachable"})

    async def _note_answer(self, call: Call) -> None:
        try:
            result: CancelResult = await call.runner
        except asyncio.CancelledError:
            return
        except Failure as failure:
            call.answer, call.details = failure.slug, dict(failure.details)
        except UnavailableError:
            call.answer = "unavailable"
        except Exception as error:  # noqa: BLE001  noted, and found by the check
            self.record.defects.append(error)
            call.answer = "internal"
        else:
            call.answer, call.returned_task = str(result.outcome), result.task
        call.answered_at = self.clock()
        call.seen_task = await self.task(call.target_id)

    async def cancel_all(
        self, by: Caller, *, holds: bool, force_after_seconds: float | None
    ) -> None:
        """Cancels every task of the organization, by CancelTasks or with a hold."""
        at = await self.workspace()
        target = await self.task(at.current_task_id)
        now, request_id = self.clock(), f"all_{next(self._request_numbers)}"
        outcomes = {"already_requested"}
        if target is None:
            outcomes = {"no_active_task"}
        elif target.cancel is None:
            outcomes.add("accepted")
        if holds:
            self.may_be_held = True
            force_after_seconds = None
        call = Call(
            request_id=request_id,
            by=by,
            asked_at=now,
            target_id=target.id if target is not None else None,
            wait_seconds=None,
            signal_seconds=0.0,
            force_at=None
            if force_after_seconds is None
            else now + timedelta(seconds=force_after_seconds),
            expected=None if self.store.hiccups else frozenset(outcomes),
            drains_before=self.record.drains,
            runner=asyncio.create_task(
                self._cancel_all(by, request_id, target, force_after_seconds, holds=holds)
            ),
        )
        self.record.calls.append(call)
        self._start(self._note_answer(call))

    async def _cancel_all(
        self,
        by: Caller,
        request_id: str,
        target: Task | None,
        force_after_seconds: float | None,
        *,
        holds: bool,
    ) -> CancelResult:
        """The answer as if CancelTask had given it."""
        origin = Origin(request_id)
        if holds:
            request = HoldOrg(cancel_running=True, origin=origin)
            _, result = await hold_org(by, request, self.store, self.clock)
            self.is_held = True
        else:
            batch = CancelTasks(force_after_seconds=force_after_seconds, origin=origin)
            result = await cancel_tasks(by, batch, self.store, self.clock)
        assert not result.remaining, result
        if not result.matched:
            return CancelResult(self.workspace_id, Outcome.NO_ACTIVE_TASK, None)
        assert target is not None, result
        outcome = Outcome.ACCEPTED if result.accepted else Outcome.ALREADY_REQUESTED
        return CancelResult(self.workspace_id, outcome, None)

    async def release(self) -> None:
        """Ends the hold."""
        self.is_held = False
        await self._try(release_org(CALLER, Origin(), self.store))
        self.may_be_held = await self.observer.get_hold(CALLER.org_id) is not None

    async def stop(self) -> None:
        at = await self.workspace()
        request_id = f"stop_{next(self._request_numbers)}"
        self.record.stops[request_id] = at.current_task_id
        self._start(
            self._try(
                workspaces.stop_workspace(
                    CALLER, at.id, Origin(request_id), self.store, self.wire, self.clock
                )
            )
        )

    async def resume(self) -> None:
        await self._try(
            workspaces.resume_workspace(CALLER, self.workspace_id, Origin(), self.store, self.clock)
        )

    async def _try(self, call: Coroutine[Any, Any, object]) -> None:
        try:
            await call
        except (Failure, UnavailableError, AgentUnreachableError):
            return

    # What the stack does.

    def lead(self) -> None:
        """Starts a leading controller, unless one leads."""
        if self._leading is None:
            self.changes = Changes()
            controller = Controller(
                self.store, self.pods, self.wire, BOUNDS, self.run_id, self.clock, self.clock()
            )
            self._leading = asyncio.create_task(controller.run(self.changes))
            self.leading_since = self.clock()

    async def stop_leading(self) -> None:
        """Ends the leading controller. Pods keep running."""
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.wait({self._leading})
            self._leading = self.leading_since = None

    async def restart_stack(self) -> None:
        """Ends every pod that can be reached, and starts a controller of a new run."""
        await self.stop_leading()
        await self.pods.end(await self.workspace(), grace_seconds=0)
        self.run_id = f"run_{next(self._run_numbers)}"
        self.lead()

    def drain(self) -> None:
        """The server answers its open waits, and another server takes over."""
        self.record.drains += 1
        self.wakeups.drain()
        self.wakeups = FakeWakeups()

    async def advance(self, seconds: float) -> None:
        """Advances the clock in steps, so that timers fire in order."""
        await self.advance_to(self.clock() + timedelta(seconds=seconds))

    async def advance_to(self, moment: datetime) -> None:
        """Does the same, until this time."""
        while (left_seconds := (moment - self.clock()).total_seconds()) > 0:
            self.clock.advance(min(left_seconds, STEP_SECONDS))
            await self.settle()
