"""The product, and what its callers do."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from itertools import count
from typing import Any

from evershell.core import tasks, workspaces
from evershell.core.caller import Caller
from evershell.core.cancel_task import CancelResult, CancelTask, Outcome, cancel_task
from evershell.core.cancel_tasks import CancelTasks, cancel_tasks
from evershell.core.errors import AgentUnreachableError, Failure, UnavailableError
from evershell.core.event import Origin
from evershell.core.hold import HoldOrg, hold_org, release_org
from evershell.core.task import Task, TaskLimits
from evershell.core.task_filter import AllTasks
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.faults.invariants.product import CALLER, OpenStores, Product
from tests.faults.invariants.record import Call
from tests.faults.invariants.wire import SLOW_SECONDS, Network

_STATE_SLUGS = {
    WorkspaceStatus.STOPPING: "workspace_stopped",
    WorkspaceStatus.STOPPED: "workspace_stopped",
    WorkspaceStatus.FAILED: "workspace_failed",
    WorkspaceStatus.DELETING: "workspace_deleting",
}


class World(Product):
    """The product and its callers, who call in the background."""

    def __init__(self, open_stores: OpenStores) -> None:
        super().__init__(open_stores)
        # Whether a hold is certainly in force, and whether one may be in force.
        self.is_held = self.may_be_held = False
        self._request_numbers = count(1)

    async def submit(self, limits: TaskLimits | None = None) -> None:
        """Submits a task.

        Records a failure if the submission failed although an idle and healthy agent had to accept
        the task, or although the task had to wake a suspended workspace.
        """
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
        has_to_wake = (
            before.status is WorkspaceStatus.SUSPENDED
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

        if before.status is WorkspaceStatus.SUSPENDED:
            self.record.wakes.add(request.origin.request_id)

        async def call() -> None:
            is_held = self.is_held
            try:
                task = await tasks.submit_task(
                    CALLER, request, self.store, self.wire, self.subscriptions, self.clock
                )
                if is_held:
                    self.record.defects.append(AssertionError(f"submitted during a hold: {task}"))
            except (Failure, UnavailableError) as failure:
                is_refused = getattr(failure, "slug", "") != "agent_unreachable"
                if due or (has_to_wake and is_refused):
                    self.record.refused_submits.append(f"{request.origin.request_id}: {failure}")

        self._start(call())

    def _agent_is_free(self, at: Workspace) -> bool:
        """Whether the agent ended its last task itself, and holds no other task.

        The agent may hold another task if a late message has started one.
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
            # After the first call, the task may end before the last call is handled.
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
                task_id=task_id,
                reason=reason,
                wait_seconds=wait_seconds,
                origin=Origin(request_id),
                force_after_seconds=force_after_seconds,
            )
            runner = asyncio.create_task(
                cancel_task(by, request, self.store, self.wire, self.subscriptions, self.clock)
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
        """Returns the answers that are correct in this state.

        Checks the conditions in the order that the contract defines.
        """
        if self.removed is not None:
            return frozenset({"workspace_not_found"})
        if named and target is None:
            return frozenset({"task_not_found"})
        if target is not None and target.status.is_terminal:
            return frozenset({"already_finished"})
        is_waking = at.status is WorkspaceStatus.PROVISIONING
        if is_waking and target is None:
            return frozenset({"workspace_provisioning"})
        if at.status in _STATE_SLUGS:
            return frozenset({_STATE_SLUGS[at.status]})
        if target is None:
            return frozenset({"no_active_task"})
        outcomes = (
            {"already_requested"}
            if target.cancel is not None
            else {"accepted", "already_requested"}
        )
        if is_waking or self.wire.reaches(at):
            return frozenset(outcomes)
        return frozenset({*outcomes, "agent_unreachable"})

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
        """Cancels every task of the organization, by CancelTasks or by a hold."""
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
        """Cancels all tasks. Returns what CancelTask would have answered for the current task."""
        origin = Origin(request_id)
        if holds:
            request = HoldOrg(cancel_running=True, origin=origin)
            _, result = await hold_org(by, request, self.store, self.clock)
            self.is_held = True
        else:
            batch = CancelTasks(
                wanted=AllTasks(), force_after_seconds=force_after_seconds, origin=origin
            )
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

    async def delete(self) -> None:
        at = await self.workspace()
        request_id = f"delete_{next(self._request_numbers)}"
        self.record.stops[request_id] = at.current_task_id
        self._start(
            self._try(
                workspaces.delete_workspace(
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
