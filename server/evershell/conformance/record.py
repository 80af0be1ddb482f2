"""Checks what the agent under test has committed for a task."""

from collections.abc import Mapping
from typing import Any

from evershell.conformance.moments import Moment, Run
from evershell.core.task import TaskStatus

_INTERRUPTED = "interrupted"


class FailedError(Exception):
    """The agent broke the contract. The text says how."""


class NotReachedError(Exception):
    """The agent did not reach the moment that the case needs. The text says why."""


def tool_calls(iteration: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tool calls of an iteration."""
    first = iteration.get("tool_call")
    return list(iteration.get("tool_calls") or ([first] if first else []))


def why_missed(moment: Moment, run: Run) -> str:
    """Why the task was not cancelled at the given moment."""
    assert run.ended is not None
    match moment:
        case Moment.MODEL_CALL | Moment.TOOL_CALL | Moment.TWO_TOOLS:
            phase = "model_call" if moment is Moment.MODEL_CALL else "tool_call"
            return f"the agent was seen in no {phase}"
        case Moment.BETWEEN:
            return "the task has fewer than two iterations"
        case _:
            return f"the task ended {run.ended.status} before"


def check_whole(run: Run) -> None:
    """Checks that a task that was not cancelled has completed. Raises FailedError."""
    if run.ended is None or run.ended.status is not TaskStatus.COMPLETED:
        status = "open" if run.ended is None else f"{run.ended.status}: {run.ended.reason}"
        raise FailedError(f"the task ended {status}")


def has_to_end(run: Run) -> bool:
    """Whether the task must end now: it is cancelled, and its last iteration has ended."""
    if run.cancelled_after is None:
        return False
    during = run.moment in (Moment.MODEL_CALL, Moment.TOOL_CALL, Moment.TWO_TOOLS)
    return len(run.iterations) - run.cancelled_after >= during


def check_end(run: Run) -> None:
    """Checks what was recorded after the cancellation. Raises FailedError or NotReachedError."""
    assert run.ended is not None
    assert run.cancelled_after is not None
    if run.ended.status is not TaskStatus.CANCELLED:
        raise FailedError(f"the task ended {run.ended.status}")
    further = len(run.iterations) - run.cancelled_after
    expected = {Moment.START: {0}, Moment.BETWEEN: {0}, Moment.END: {0, 1}}
    assert run.moment is not None
    if further not in expected.get(run.moment, {1}):
        raise FailedError(f"{further} iterations were recorded after the cancellation")
    interrupted = _interrupted(run.iterations[-1]) if further else ""
    if run.ended.forced != bool(interrupted):
        said = "forced" if run.ended.forced else "not forced"
        was = "was" if interrupted else "was not"
        raise FailedError(f"the end is {said}, but the last iteration {was} interrupted")
    if run.moment in expected:
        return
    if bool(interrupted) != run.force:
        was = "was not" if run.force else "was"
        raise FailedError(f"the iteration {was} interrupted")
    if interrupted and (interrupted == "model call") != (run.moment is Moment.MODEL_CALL):
        raise NotReachedError(f"the {interrupted} was interrupted")


def _interrupted(iteration: Mapping[str, Any]) -> str:
    """Which kind of call was interrupted in the iteration; empty if none was."""
    if iteration["model_call"]["status"] == _INTERRUPTED:
        return "model call"
    statuses = [call["result"]["status"] for call in tool_calls(iteration)]
    return "tool call" if _INTERRUPTED in statuses else ""


def tokens(iteration: Mapping[str, Any]) -> int:
    """The tokens of the model call."""
    call = iteration["model_call"]
    return int(call["input_tokens"]) + int(call["output_tokens"])


def missing(whole: Mapping[str, Any], iteration: Mapping[str, Any]) -> str:
    """What the record of an iteration lacks, compared with `whole`; empty if it lacks nothing.

    `whole` is the same iteration of a task that was not cancelled.
    """
    call = iteration["model_call"]
    if call["status"] != _INTERRUPTED:
        if tokens(whole) and not tokens(iteration):
            return "the tokens"
        if whole["model_call"]["content"] and not call["content"]:
            return "the text"
    for before, after in zip(tool_calls(whole), tool_calls(iteration), strict=False):
        result = after["result"]
        if result["status"] != _INTERRUPTED and before["result"]["output"] and not result["output"]:
            return "the output"
    return ""
