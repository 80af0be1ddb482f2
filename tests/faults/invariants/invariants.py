"""The invariants of a cancellation, numbered as in the contract.

Each function checks the observations so far, and raises AssertionError if one is wrong. Checks that
need only rows and logs are in tests.support.promises.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from evershell.agents.shutdown import ExitCode
from evershell.core.event import Event, EventType, cancel_requested_payload
from evershell.core.task import CancelIntent, Task, TaskLimits, TaskStatus
from evershell.core.task_limits import CREDENTIAL_KIND, REQUESTER, budgets
from evershell.core.workspace import WorkspaceStatus
from tests.faults.invariants.product import SUSPEND_AFTER
from tests.faults.invariants.record import Iteration
from tests.faults.invariants.trouble import Fault, Link
from tests.faults.invariants.view import View
from tests.support.promises import violations

# How long a call may take to answer `agent_unreachable`.
_UNREACHABLE_SECONDS = 2.0
# Slightly longer than an agent's pause between two attempts of a call.
_BACKOFF_SECONDS = 1.5
_RECORDED = ("accepted", "already_requested")
# Longer than the pause between two scans of the controller.
_SCAN = timedelta(seconds=1.5)


def promises_are_kept(view: View) -> None:
    """Checks the promises that also hold on a real stack."""
    assert not (broken := violations(view.history)), broken


def nothing_unexpected_is_raised(view: View) -> None:
    """No constraint of the database is violated, and no defect is recorded."""
    assert not view.record.defects, view.record.defects


def answers_are_those_of_the_contract(view: View) -> None:
    """Each outcome and slug is correct for the state before the call."""
    for call in view.record.calls:
        assert not call.answer or call.expected is None or call.answer in call.expected, call


def invariant_1_durable_first(view: View) -> None:
    """The intent is committed before a signal is sent, and before an answer says it is recorded.

    An intent counts as committed if another session of the database sees it.
    """
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
    """A task keeps the final reply as its result, even if it is cancelled.

    No answer reports an end before the end is committed.
    """
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
    """The end of a task is the same in its row and in the log, and never changes.

    Only the current task of the workspace is open.
    """
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
    """Each intent comes from a call that targeted the task, from a stop, or from a limit."""
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
    """An agent whose task was cancelled keeps its epoch and accepts the next task."""
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
    """If the agent is unreachable, the caller learns that the intent is recorded.

    If the end of a task says that its work has stopped, none of its tools still runs. An agent
    whose epoch has ended learns from the next reply that it is fenced. A running agent whose lease
    has expired calls neither the model nor a tool.
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
    """Only the call that recorded the intent gets `accepted`, and the intent never changes."""
    for task_id, intent in view.record.intents.items():
        now = view.tasks[task_id].cancel
        # The force deadline may change, which invariant 11 checks.
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
    """The reply to an agent's call contains the intent if it was recorded before the call."""
    for hop in view.record.hops:
        assert hop.says_cancelled or not hop.was_recorded, ("a reply lacks the cancellation", hop)


def invariant_10_bounded(view: View) -> None:
    """A call that waits is answered when its task ends, its wait is over, or the server drains."""
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
    """A task shows its recorded cancellation. A running task shows the phase of its agent."""
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
    """Whether every message of this agent must have arrived by now."""
    agent = next(each for each in view.world.agents if each.epoch == epoch)
    now, hiccup_at = view.world.clock, view.world.store.last_hiccup_at
    is_mended = now.monotonic() > agent.mended_at + _BACKOFF_SECONDS or not agent.was_disturbed
    is_past_hiccups = hiccup_at is None or (now() - hiccup_at).total_seconds() > _BACKOFF_SECONDS
    is_well = (
        agent.is_up and not agent.is_frozen and agent.link is Link.GOOD and agent.fault is None
    )
    return is_well and is_mended and is_past_hiccups


def invariant_4_the_iteration_is_finished(view: View) -> None:
    """After a cancellation, no further iteration begins, and the current one is recorded.

    The current iteration is recorded with its result, unless it was interrupted by force.
    """
    for begun in view.record.iterations:
        assert not begun.was_cancelled, ("began after the agent received the cancellation", begun)
        assert begun.may_interrupt, ("interrupted without permission", begun)
    for task in view.tasks.values():
        events = view.events_of(task.id, EventType.ITERATION_COMPLETED)
        begun_by_number = {begun.number: begun for begun in view.iterations_of(task.id)}
        tool_calls = [
            event.payload["tool_call"] for event in events if event.payload.get("tool_call")
        ]
        for event in events:
            _check_iteration(event, begun_by_number[event.payload["number"]])
        usage = (
            task.usage.model_calls,
            task.usage.input_tokens,
            task.usage.output_tokens,
            task.usage.cost_nanos,
        )
        # An agent reports each iteration before the tool call. If the iteration is lost later, it
        # still counts.
        lost = task.iteration_lost and task.usage.model_calls > len(events)
        count, tools = len(events) + lost, len(tool_calls) + lost
        assert usage == (count, 3 * count, 2 * count, 5 * count), task
        # A tool call that is interrupted between its report and its beginning is in no event.
        assert 0 <= task.usage.tool_calls - tools <= task.forced, task
        if task.id in view.record.ended_by_agent:
            to_record = [each for each in begun_by_number.values() if not each.failed]
            assert len(events) == len(to_record), ("an iteration is not recorded", to_record)


def _check_iteration(event: Event, begun: Iteration) -> None:
    model_call, tool_call = event.payload["model_call"], event.payload.get("tool_call")
    assert model_call["content"] == begun.content, (event, begun)
    is_interrupted = begun.interrupted_call == "model_call"
    assert model_call["status"] == ("interrupted" if is_interrupted else "completed"), (
        event,
        begun,
    )
    assert not is_interrupted or not tool_call, (
        "a tool call after an interrupted model call",
        event,
        begun,
    )
    if begun.tool_output is not None:
        assert tool_call is not None and begun.tool_output, (
            "a tool call without its result",
            event,
            begun,
        )
        status = "interrupted" if begun.interrupted_call else "exited"
        assert (tool_call["result"]["status"], tool_call["result"]["output"]) == (
            status,
            begun.tool_output,
        ), (event, begun)


def invariant_11_force_is_asked_for(view: View) -> None:
    """The earliest requested force deadline applies.

    It interrupts only a call that is open when the deadline passes.
    """
    for task in view.tasks.values():
        _check_deadline(view, task)
        # Tasks without a pod to end are excluded: tasks that were never delivered, and tasks that
        # woke a suspended workspace but never started.
        is_ended_with_its_pod = (
            task.id not in view.record.ends_proposed
            and task.reason != "the agent could not be reached"
            and (task.started_at is not None or not _wakes(view, task))
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
            # A tool call that is interrupted between its report and its beginning counts, but is in
            # no event.
            begun = sum(bool(event.payload.get("tool_call")) for event in events)
            is_unbegun = task.usage.tool_calls > begun
            assert task.forced == (bool(interrupted) or is_unbegun), ("forced is wrong", task)
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


def _wakes(view: View, task: Task) -> bool:
    """Whether the task was submitted to a suspended workspace."""
    (submitted,) = view.events_of(task.id, EventType.TASK_SUBMITTED)
    return submitted.origin.request_id in view.record.wakes


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
        # It is unknown which deadline a failed call has set. A stop or a limit may also set one.
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


def duration_ends_at(task: Task) -> datetime | None:
    """When the task reaches its limit of duration; None without this limit or before the start."""
    if task.limits.max_duration_seconds is None or task.started_at is None:
        return None
    return task.started_at + timedelta(seconds=task.limits.max_duration_seconds)


def limits_decide_the_end(view: View) -> None:
    """A task that has reached a limit is cancelled and cannot end in any other way."""
    for task in view.tasks.values():
        is_used = any(budget.is_reached for budget in budgets(task))
        assert not is_used or task.cancel is not None, task
        due = duration_ends_at(task)
        is_late = due is not None and task.completed_at is not None and due <= task.completed_at
        assert not is_late or task.status is TaskStatus.CANCELLED, task


def limits_are_named(view: View) -> None:
    """A cancellation by the service names a limit that the task had reached by then."""
    for task in view.tasks.values():
        cancel, limits = task.cancel, task.limits
        if cancel is None or cancel.requested_by != REQUESTER:
            continue
        due = duration_ends_at(task)
        named = set()
        if due is not None and due <= cancel.requested_at:
            named.add(f"max_duration reached: {limits.max_duration_seconds:.12g} s")
        if limits.max_total_tokens is not None:
            named |= {
                f"max_total_tokens reached: {tokens} of {limits.max_total_tokens} tokens"
                for tokens in range(limits.max_total_tokens, _tokens(task) + 1)
            }
        if limits.max_cost_nanos is not None:
            named |= {
                f"max_cost reached: 0.{cost:09} of 0.{limits.max_cost_nanos:09} USD"
                for cost in range(limits.max_cost_nanos, (task.used.cost_nanos or 0) + 1)
            }
        assert cancel.reason in named, (task, named)
        assert cancel.credential_kind == CREDENTIAL_KIND, task


def limits_are_announced_once(view: View) -> None:
    """A task announces once that it comes close to a limit (80 %), unless it is cancelled first."""
    for task in view.tasks.values():
        for most in filter(None, (task.limits.max_total_tokens, task.limits.max_cost_nanos)):
            used, announced = 0, 0
            for event in view.log[task.id]:
                if event.type is EventType.TASK_CANCEL_REQUESTED:
                    break
                if event.type is EventType.ITERATION_COMPLETED:
                    announced += _approaches(used, most)
                    used += 5
            events = view.events_of(task.id, EventType.TASK_LIMIT_APPROACHED)
            # Before the cancellation, the agent may also have reported an iteration that was still
            # open.
            next_one = _approaches(used, most)
            assert announced <= len(events) <= announced + next_one, (task, events)


def _approaches(used: int, most: int) -> bool:
    """Whether one more iteration, with 5 tokens, reaches 80 % of the limit but not the limit."""
    return used * 100 < most * 80 <= (used + 5) * 100 < most * 100


def usage_counts_each_iteration_once(view: View) -> None:
    """The usage never shrinks. It counts each reported iteration once, even an open or lost one."""
    for task in view.tasks.values():
        used, seen = task.used, view.record.usages.get(task.id, task.used)
        assert used.at_least(seen) == used, ("usage shrinks", seen, task)
        view.record.usages[task.id] = used
        # invariant_4 checks committed and lost iterations. A model call of gates.py has 3 input
        # tokens and 2 output tokens.
        is_open = task.open_iteration is not None
        assert not (is_open and task.status.is_terminal), task
        calls = task.usage.model_calls + is_open
        assert (used.model_calls, used.input_tokens, used.output_tokens) == (
            calls,
            3 * calls,
            2 * calls,
        ), task


def _tokens(task: Task) -> int:
    return task.used.input_tokens + task.used.output_tokens


def limits_are_recorded_in_time(view: View) -> None:
    """A leading controller soon records that a task has reached its limit of duration.

    This also holds if the task reached the limit before the controller led.
    """
    world, now = view.world, view.world.clock()
    for task in view.tasks.values():
        due = duration_ends_at(task)
        if task.cancel is not None or task.status.is_terminal or due is None:
            continue
        if world.leading_since is None:
            continue
        since = [due, world.leading_since, world.store.last_hiccup_at or due]
        assert now <= max(since) + _SCAN, ("a limit is forgotten", task)


def suspended_only_when_idle(view: View) -> None:
    """A workspace is suspended only after a long idle time or a forced end of its pod.

    A suspended workspace has no agent.
    """
    at = view.workspace
    if at.status is WorkspaceStatus.SUSPENDED:
        last = view.events[-1]
        if at.status_reason:
            assert last.type is EventType.TASK_COMPLETED and last.payload["forced"], (at, last)
        else:
            assert at.updated_at >= last.time + SUSPEND_AFTER, (at, last)
        assert (at.agent_address, at.lease_expires_at, at.current_task_id) == (None,) * 3, at


def a_wake_is_exact(view: View) -> None:
    """A task that wakes its workspace starts after the agent registers, or has no iterations."""
    for task in view.tasks.values():
        if not _wakes(view, task):
            continue
        types = [event.type for event in view.log[task.id]]
        if EventType.TASK_STARTED in types:
            registered = [each for each in view.events if each.type is EventType.WORKSPACE_RESUMED]
            (submitted,) = view.events_of(task.id, EventType.TASK_SUBMITTED)
            (started,) = view.events_of(task.id, EventType.TASK_STARTED)
            assert any(submitted.seq < each.seq < started.seq for each in registered), task
        else:
            assert task.iterations == 0 and task.status is not TaskStatus.COMPLETED, task


INVARIANTS = (
    promises_are_kept,
    invariant_1_durable_first,
    invariant_2_accepted_means_cancelled,
    invariant_3_one_end,
    invariant_4_the_iteration_is_finished,
    invariant_5_no_leak,
    invariant_6_the_pod_lives,
    invariant_7_not_lost,
    invariant_8_idempotent,
    invariant_9_every_hop_checks,
    invariant_10_bounded,
    invariant_11_force_is_asked_for,
    invariant_12_visible,
    limits_decide_the_end,
    limits_are_named,
    limits_are_announced_once,
    limits_are_recorded_in_time,
    usage_counts_each_iteration_once,
    suspended_only_when_idle,
    a_wake_is_exact,
    answers_are_those_of_the_contract,
    nothing_unexpected_is_raised,
)
