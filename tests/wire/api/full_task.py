"""A task with every field set, its cancellation, and an iteration."""

from datetime import timedelta

from evershell.core.task import Phase, Task, TaskLimits, TaskStatus, Usage
from tests.support.world import NOW, intent

USAGE = Usage(
    input_tokens=2**40,
    output_tokens=2,
    model_calls=3,
    tool_calls=4,
    cost_nanos=1_500_000_000,
)
INTENT = intent(force_at=NOW + timedelta(seconds=4), force_requested_by="user_8")
TASK = Task(
    id="task_1",
    workspace_id="ws_1",
    description="ls",
    metadata={"k": "v"},
    submitted_by="user_7",
    limits=TaskLimits(
        max_duration_seconds=90.5,
        max_total_tokens=2**40,
        max_cost_nanos=2_000_000_000,
        force_after_seconds=0,
    ),
    max_iterations=7,
    status=TaskStatus.RUNNING,
    phase=Phase.TOOL_CALL,
    iterations=5,
    created_at=NOW,
    started_at=NOW + timedelta(seconds=1),
    completed_at=NOW + timedelta(seconds=2),
    cancel=INTENT,
    reason="why",
    result="what",
    forced=True,
    iteration_lost=True,
    usage=USAGE,
    ancestor_ids=("task_root", "task_parent"),
)


TOOL_CALL = {
    "id": "call_1",
    "name": "shell",
    "arguments": "{}",
    "result": {"status": "interrupted", "exit_code": -9, "output": "ü", "truncated_bytes": "4"},
    "duration_ms": "5",
}
ITERATION = {
    "number": 1,
    "model_call": {
        "model": "m",
        "content": "c",
        "input_tokens": "1099511627776",
        "output_tokens": "2",
        "duration_ms": "3",
        "status": "interrupted",
        "cached_input_tokens": "4",
        "cache_write_tokens": "5",
        "cache_write_1h_tokens": "6",
        "input_audio_tokens": "7",
        "reasoning_tokens": "8",
        "output_audio_tokens": "9",
    },
    "tool_call": TOOL_CALL,
}
# An iteration with several tool calls.
PARALLEL = {**ITERATION, "tool_calls": [TOOL_CALL, {**TOOL_CALL, "id": "call_2"}]}
