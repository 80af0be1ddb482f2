"""The invariants of a cancellation, numbered as in the contract.

Each function checks the observations so far, and raises AssertionError. forcing.py, iterations.py
and limits.py have some of them. Checks that need only rows and logs are in tests/support/promises.
"""

from dataclasses import replace

from evershell.agents.shutdown import ExitCode
from evershell.core.event import EventType, cancel_requested_payload
from evershell.core.task import CancelIntent, TaskLimits, TaskStatus
from evershell.core.task_limits import REQUESTER
from evershell.core.workspace import WorkspaceStatus
from tests.faults.invariants import forcing, iterations, limits
from tests.faults.invariants.trouble import Fault, Link
from tests.faults.invariants.view import View
from tests.support.promises.promises import violations

# The most that an answer about an unreachable agent may take.
_UNREACHABLE_SECONDS = 2.0
# Slightly longer than an agent's pause between two attempts of a call.
_BACKOFF_SECONDS = 1.5
_RECORDED = ("accepted", "already_requested")


def promises_are_kept(view: View) -> None:
    """The promises that also hold on a real stack."""
    assert not (broken := violations(view.history)), broken


def nothing_unexpected_is_raised(view: View) -> None:
    """No constraint of the database failed, and no defect was recorded."""
    assert not view.record.defects, view.record.defects


def answers_are_those_of_the_contract(view: View) -> None:
    """Each outcome and slug is correct for the state before the call."""
    for call in view.record.calls:
        assert not call.answer or call.expected is None or call.answer in call.expected, call


def invariant_1_durable_first(view: View) -> None:
    """Another session of the database sees the intent before any signal and any promise."""
    assert all(signal.was_recorded for signal in view.record.signals), view.record.signals
    for call in view.record.calls:
        if call.is_promise:
            assert call.seen_task is not None and call.seen_task.cancel is not None, call
    for task in view.tasks.values():
        first = next(
            (
                call
                for call in view.calls_for(task.id)
                if task.cancel and task.cancel.request_id == call.request_id
            ),
            None,
        )
        if first is not None and task.cancel is not None:
            whole = (
                task.cancel.requested_by,
                task.cancel.credential_kind,
                task.cancel.requested_at,
            )
            assert whole == (first.by.actor_id, first.by.credential_kind, first.asked_at), (
                task.cancel
            )


def invariant_2_accepted_means_cancelled(view: View) -> None:
    """A cancelled task keeps its result; no answer reports an end before its commit."""
    for task in view.tasks.values():
        iterations = view.events_of(task.id, EventType.ITERATION_COMPLETED)
        content = iterations[-1].payload["model_call"]["content"] if iterations else ""
        if content.startswith("final") and task.id in view.record.ended_by_agent:
            assert task.result == content, task
    for call in view.record.calls:
        if call.returned_task is not None and call.returned_task.status.is_terminal:
            assert (
                call.seen_task is not None and call.seen_task.status is call.returned_task.status
            ), call


def invariant_3_one_end(view: View) -> None:
    """The end in the log agrees with the row, and never changes."""
    for task in view.tasks.values():
        for end in view.events_of(task.id, EventType.TASK_COMPLETED):
            payload = end.payload
            assert (payload["result"], payload["reason"]) == (task.result, task.reason), (
                task,
                payload,
            )
            assert payload.get("cancel") == (
                cancel_requested_payload(task.cancel)["cancel"] if task.cancel is not None else None
            ), (task, payload)
            assert view.record.ends.setdefault(task.id, task) == task, "an end was changed"
    still_open = [task.id for task in view.tasks.values() if not task.status.is_terminal]
    assert still_open == (
        [view.workspace.current_task_id] if view.workspace.current_task_id else []
    )


def invariant_5_no_leak(view: View) -> None:
    """An intent is recorded only on the task that its call targets."""
    assert not view.record.unasked, view.record.unasked
    for task in view.tasks.values():
        if task.cancel is not None:
            asked = {call.request_id for call in view.calls_for(task.id)}
            asked |= {
                request_id
                for request_id, task_id in view.record.stops.items()
                if task_id == task.id
            }
            by_limit = task.cancel.requested_by == REQUESTER and task.limits != TaskLimits()
            assert by_limit or task.cancel.request_id in asked, (task, asked)


def invariant_6_the_pod_lives(view: View) -> None:
    """An agent whose task was cancelled continues in its epoch and accepts the next task."""
    assert not view.record.refused_submits, view.record.refused_submits
    for agent in view.world.agents:
        if not agent.shutdown.is_begun:
            continue
        code = agent.shutdown.code
        allowed = (ExitCode.STOPPED, ExitCode.FENCED, ExitCode.LEASE_OVER)
        assert code in allowed or (code is ExitCode.CRASHED and agent.fault is Fault.BREAKS), (
            agent.shutdown.reason
        )
        assert code is not ExitCode.LEASE_OVER or agent.was_disturbed, (
            "its lease expired although its calls succeeded"
        )
        assert (
            code is not ExitCode.FENCED
            or agent.epoch < view.workspace.epoch
            or not view.workspace.is_up
        ), "fenced without need"
    last = view.events[-1] if view.events else None
    if last is not None and last.task_id in view.record.ended_by_agent and view.workspace.is_up:
        assert view.workspace.status is WorkspaceStatus.IDLE, view.workspace
        assert view.workspace.epoch == view.record.ended_by_agent[last.task_id], view.workspace


def invariant_7_not_lost(view: View) -> None:
    """Callers learn what is recorded for an unreachable agent; a lost agent is fenced.

    The tools of a lost agent end before its task does.
    """
    for call in view.record.calls:
        if call.answer == "agent_unreachable":
            assert (call.details["task_id"], call.details["intent_recorded"]) == (
                call.target_id,
                True,
            ), call
            assert "retry_after_seconds" not in call.details, call
    for epoch, task_id in view.world.shared.tools:
        end = next(iter(view.events_of(task_id, EventType.TASK_COMPLETED)), None)
        assert end is None or end.payload["work_stopped"] != "yes", (
            "a tool outlives its task",
            epoch,
            end,
        )
    assert all(hop.says_fenced for hop in view.record.hops if hop.was_over), (
        "an agent of another epoch is not fenced"
    )
    is_down = False
    for event in view.events:
        assert not is_down or event.task_id is None, (
            "a task continues in a workspace without an agent",
            event,
        )
        is_down = event.type in (EventType.WORKSPACE_FAILED, EventType.WORKSPACE_STOPPED)
    for agent in view.world.agents:
        lease = view.world.store.leases.get(agent.epoch)
        if (
            lease is not None
            and lease < view.world.clock()
            and not agent.is_gone
            and not agent.is_frozen
        ):
            assert not agent.gates.is_model_called and not agent.gates.is_tool_called, (
                "an agent works after its lease expired"
            )


def invariant_8_idempotent(view: View) -> None:
    """Only the call whose intent is recorded is `accepted`; the intent never changes."""
    for task_id, intent in view.record.intents.items():
        now = view.tasks[task_id].cancel
        # Only its force deadline may change, which invariant 11 checks.
        assert now is not None and _without_force(now) == _without_force(intent), (
            "an intent was changed",
            intent,
            now,
        )
    for task in view.tasks.values():
        requests = view.events_of(task.id, EventType.TASK_CANCEL_REQUESTED)
        accepted = [call for call in view.calls_for(task.id) if call.answer == "accepted"]
        assert len(accepted) <= 1, accepted
        if task.cancel is None:
            continue
        view.record.intents.setdefault(task.id, task.cancel)
        first = cancel_requested_payload(_without_force(task.cancel))["cancel"]
        assert requests[0].payload["cancel"].items() >= first.items(), (task, requests)
        assert requests[0].origin.request_id == task.cancel.request_id, (task, requests)
        for call in view.calls_for(task.id):
            if call.answer in _RECORDED:
                assert (call.answer == "accepted") == (call.request_id == task.cancel.request_id), (
                    call,
                    task.cancel,
                )


def _without_force(intent: CancelIntent) -> CancelIntent:
    return replace(intent, force_at=None, force_requested_by=None)


def invariant_9_every_hop_checks(view: View) -> None:
    """The reply to an agent's call contains the intent that was recorded before the call."""
    for hop in view.record.hops:
        assert hop.says_cancelled or not hop.was_recorded, ("a reply lacks the cancellation", hop)


def invariant_10_bounded(view: View) -> None:
    """An answer waits no longer than its caller asked for, and ends with the task."""
    now = view.world.clock()
    for call in view.record.calls:
        waited_seconds = ((call.answered_at or now) - call.asked_at).total_seconds()
        wait_seconds = call.wait_seconds or 0
        target = view.tasks.get(call.target_id or "")
        if call.answer == "agent_unreachable":
            assert waited_seconds <= _UNREACHABLE_SECONDS, call
        if not call.answer and not call.has_left and waited_seconds >= call.signal_seconds:
            assert waited_seconds < wait_seconds + call.signal_seconds, ("it waits too long", call)
            assert target is not None and not target.status.is_terminal, (
                "it waits for a task that has ended",
                call,
            )
            assert view.record.drains == call.drains_before, (
                "it waits although the server drains",
                call,
            )
        if (
            call.answer in _RECORDED
            and waited_seconds < wait_seconds
            and view.record.drains == call.drains_before
        ):
            assert call.returned_task is not None and call.returned_task.status.is_terminal, (
                "it did not wait",
                call,
            )


def invariant_12_visible(view: View) -> None:
    """Between request and end, the task shows its intent and the phase of its agent."""
    for task in view.tasks.values():
        assert (
            not view.calls_for(task.id)
            or task.cancel is not None
            or not any(c.is_promise for c in view.calls_for(task.id))
        ), task
        if task.status is not TaskStatus.RUNNING:
            continue
        for agent in view.world.agents:
            if agent.session.task_id == task.id and _is_in_touch(view, agent.epoch):
                assert task.phase is agent.session.phase, (task, agent.session.phase)


def _is_in_touch(view: View, epoch: int) -> bool:
    """Whether every message of this agent must have arrived."""
    agent = next(each for each in view.world.agents if each.epoch == epoch)
    now, hiccup_at = view.world.clock, view.world.store.last_hiccup_at
    is_mended = now.monotonic() > agent.mended_at + _BACKOFF_SECONDS or not agent.was_disturbed
    is_past_hiccups = hiccup_at is None or (now() - hiccup_at).total_seconds() > _BACKOFF_SECONDS
    is_well = (
        agent.is_up and not agent.is_frozen and agent.link is Link.GOOD and agent.fault is None
    )
    return is_well and is_mended and is_past_hiccups


INVARIANTS = (
    promises_are_kept,
    invariant_1_durable_first,
    invariant_2_accepted_means_cancelled,
    invariant_3_one_end,
    iterations.invariant_4_the_iteration_is_finished,
    invariant_5_no_leak,
    invariant_6_the_pod_lives,
    invariant_7_not_lost,
    invariant_8_idempotent,
    invariant_9_every_hop_checks,
    invariant_10_bounded,
    forcing.invariant_11_force_is_asked_for,
    invariant_12_visible,
    limits.limits_decide_the_end,
    limits.limits_are_named,
    limits.limits_are_recorded_in_time,
    answers_are_those_of_the_contract,
    nothing_unexpected_is_raised,
)
