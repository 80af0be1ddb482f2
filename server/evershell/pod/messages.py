"""Messages between the control plane and agents."""

from datetime import datetime, timedelta
from typing import Any

from evershell.agent.v1 import agent_service_pb2
from evershell.workspace.v1 import task_pb2

from evershell.core.task import CurrentIteration, Phase, RunningCall, Task

# The limits of an answer to GetCurrentIteration. The agent keeps to them, and the control plane
# enforces them.
MAX_RUNNING_CALLS = 16
MAX_NAME_BYTES = 256
MAX_ARGUMENTS_BYTES = 4 * 1024
MAX_LAST_OUTPUT_BYTES = 8 * 1024
PHASES = {
    int(task_pb2.Task.Phase.Value(str(phase) or "phase_unspecified")): phase for phase in Phase
}


def encode_assignment(task: Task, now: datetime) -> agent_service_pb2.Assignment:
    """The task as a message to its agent."""
    return agent_service_pb2.Assignment(
        task_id=task.id,
        description=task.description,
        max_iterations=task.max_iterations,
        cancellation=cancellation_fields(task, now),
        iterations=task.iterations,
    )


def cancellation_fields(task: Task, now: datetime) -> Any:
    """The recorded intent to cancel, as fields of a message; None if there is no intent."""
    if task.cancel is None:
        return None
    return {
        "reason": task.cancel.reason,
        "force_after_ms": _milliseconds_until(task.cancel.force_at, now),
    }


def encode_phase(phase: Phase) -> "task_pb2.Task.Phase.ValueType":
    """The value of the phase in messages."""
    return task_pb2.Task.Phase.Value(str(phase) or "phase_unspecified")


def decode_current_iteration(message: agent_service_pb2.CurrentIteration) -> CurrentIteration:
    """Decodes an agent's report. Cuts it to the limits, and drops calls without a known phase."""
    return CurrentIteration(
        number=max(0, message.number),
        calls=[
            RunningCall(
                phase=PHASES[call.phase],
                name=first_bytes(call.name, MAX_NAME_BYTES),
                arguments=first_bytes(call.arguments, MAX_ARGUMENTS_BYTES),
                duration_ms=max(0, call.duration_ms),
                output=last_bytes(call.output, MAX_LAST_OUTPUT_BYTES),
            )
            for call in message.calls[:MAX_RUNNING_CALLS]
            if PHASES.get(call.phase, Phase.NONE) is not Phase.NONE
        ],
    )


def first_bytes(text: str, max_bytes: int) -> str:
    """The first characters of the text, at most `max_bytes` of UTF-8."""
    return text.encode()[:max_bytes].decode(errors="ignore")


def last_bytes(text: str, max_bytes: int) -> str:
    """The last characters of the text, at most `max_bytes` of UTF-8."""
    return text.encode()[-max_bytes:].decode(errors="ignore")


def _milliseconds_until(moment: datetime | None, now: datetime) -> int | None:
    """The time until `moment`, at least 0. Rounded up, so that nothing is interrupted early."""
    return None if moment is None else max(0, -((now - moment) // timedelta(milliseconds=1)))
