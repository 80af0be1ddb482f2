"""Invariant 11: only what was asked for is forced, at the earliest deadline."""

from evershell.core.event import Event, EventType
from evershell.core.task import Task, TaskStatus
from tests.faults.invariants.view import View


def invariant_11_force_is_asked_for(view: View) -> None:
    """The earliest requested deadline holds; only the call open at that time is interrupted."""
    for task in view.tasks.values():
        _check_deadline(view, task)
        # A task that was never delivered has no pod to end.
        is_ended_with_its_pod = (
            task.id not in view.record.ends_proposed
            and task.reason != "the agent could not be reached"
        )
        if task.status is TaskStatus.CANCELLED and is_ended_with_its_pod:
            assert task.forced == _was_force_due(task), (
                "the control plane ended it, and forced is wrong",
                task,
            )
        if task.id in view.record.ended_by_agent:
            events = view.events_of(task.id, EventType.ITERATION_COMPLETED)
            interrupted = [each for each in events if _is_interrupted(each)]
            interrupted_call = [
                each for each in view.iterations_of(task.id) if each.interrupted_call
            ]
            assert task.forced == bool(interrupted), ("forced is wrong", task, interrupted)
            assert len(interrupted) >= len(interrupted_call), (
                "interrupted, but not recorded",
                events,
                interrupted_call,
            )
    for agent in view.world.agents:
        force_at = agent.known_cancellations.get(agent.session.task_id)
        if (
            force_at is not None
            and force_at <= view.world.clock.unix_seconds()
            and not agent.is_gone
        ):
            assert not agent.gates.is_model_called and not agent.gates.is_tool_called, (
                "a call continues after its deadline"
            )


def _was_force_due(task: Task) -> bool:
    force_at = task.cancel.force_at if task.cancel is not None else None
    return force_at is not None and task.completed_at is not None and force_at <= task.completed_at


def _is_interrupted(iteration: Event) -> bool:
    model_call, tool_call = iteration.payload["model_call"], iteration.payload.get("tool_call")
    return "interrupted" in (model_call["status"], tool_call and tool_call["result"]["status"])


def _check_deadline(view: View, task: Task) -> None:
    calls = view.calls_for(task.id)
    if (
        any(call.answer in ("unavailable", "internal") for call in calls)
        or task.id in view.record.stops.values()
        or task.limits.force_after_seconds is not None
    ):
        # The effect of these calls is unknown, and a limit may force too.
        return
    asked = [
        call for call in calls if (call.is_promise or not call.answer) and call.force_at is not None
    ]
    earliest = min(asked, key=lambda call: str(call.force_at), default=None)
    kept = (
        (task.cancel.force_at, task.cancel.force_requested_by)
        if task.cancel is not None
        else (None, None)
    )
    if earliest is None:
        assert kept == (None, None), (task, asked)
    elif task.cancel is not None:
        firsts = {call.by.actor_id for call in asked if call.force_at == earliest.force_at}
        assert kept[0] == earliest.force_at and kept[1] in firsts, (task, asked)
