"""Invariant 4: the iteration in flight is finished and recorded, and no other begins."""

from evershell.core.event import Event, EventType
from tests.faults.invariants.record import Iteration
from tests.faults.invariants.view import View


def invariant_4_the_iteration_is_finished(view: View) -> None:
    """After a cancellation, an agent begins no iteration; the one in flight is recorded.

    The iteration in flight is recorded with its result, unless it was forced.
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
            task.usage.tool_calls,
            task.usage.input_tokens,
            task.usage.output_tokens,
        )
        assert usage == (len(events), len(tool_calls), 3 * len(events), 2 * len(events)), task
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
