"""The promises: they hold for every task and every log, at any moment and after any fault.

Each function yields one line for each violation.
"""

from collections.abc import Iterator

from tests.support.promises.history import TERMINAL, History


def logs_have_no_gaps(history: History) -> Iterator[str]:
    for workspace_id, last_seq in history.last_seqs.items():
        seqs = [event.seq for event in history.log(workspace_id)]
        if seqs != list(range(1, last_seq + 1)):
            yield f"the log of {workspace_id} is not 1 to {last_seq} without gaps: {seqs}"


def promised_tasks_end_cancelled(history: History) -> Iterator[str]:
    for task_id, answer in history.promised:
        status = history.tasks[task_id].status if task_id in history.tasks else "missing"
        if status == "missing" or (status in TERMINAL and status != "cancelled"):
            yield f"{task_id}: {answer}, but its status is {status}"


def tasks_begin_once(history: History) -> Iterator[str]:
    for task, log in history.logs_by_task():
        types = [event.type for event in log]
        is_first = types[:1] == ["task_submitted"] and types.count("task_submitted") == 1
        if not is_first or types.count("task_started") > 1:
            yield f"{task.id} did not begin once: {types}"


def tasks_end_once(history: History) -> Iterator[str]:
    for task, log in history.logs_by_task():
        types = [event.type for event in log]
        ends = [event.status for event in log if event.type == "task_completed"]
        if ends != ([task.status] if task.status in TERMINAL else []):
            yield f"{task.id} is {task.status}, but its ends in the log are {ends}"
        elif ends and types[-1] != "task_completed":
            yield f"{task.id} has events after its end: {types}"


def ends_agree_with_their_task(history: History) -> Iterator[str]:
    for task, log in history.logs_by_task():
        for event in log:
            if event.type == "task_completed" and event.forced != task.forced:
                yield f"{task.id}: forced is {task.forced}, but {event.forced} in its log"


def iterations_are_numbered(history: History) -> Iterator[str]:
    for task, log in history.logs_by_task():
        numbers = [event.number for event in log if event.type == "iteration_completed"]
        if numbers != list(range(1, task.iterations + 1)):
            yield f"{task.id} has {task.iterations} iterations, but its log has {numbers}"
        ends = [event.iterations for event in log if event.type == "task_completed"]
        if any(iterations != task.iterations for iterations in ends):
            yield f"{task.id} has {task.iterations} iterations, but its end reports {ends}"


def requests_are_recorded_once(history: History) -> Iterator[str]:
    for task, log in history.logs_by_task():
        types = [event.type for event in log]
        is_asked = task.cancel_requested_at is not None
        if types.count("task_cancel_requested") != is_asked:
            yield f"{task.id} was {'not ' * (not is_asked)}asked to end, but its log has {types}"
        if task.status == "cancelled" and not is_asked:
            yield f"{task.id} is cancelled, but no caller asked for it"


def one_iteration_follows_a_request(history: History) -> Iterator[str]:
    """Only the iteration in flight completes; none if the agent has not started the task."""
    for task, log in history.logs_by_task():
        types = [event.type for event in log]
        if "task_cancel_requested" not in types:
            continue
        at = types.index("task_cancel_requested")
        further = types[at:].count("iteration_completed")
        if further > ("task_started" in types[:at]):
            yield f"{task.id} completed {further} iterations after its cancellation: {types}"


def force_is_due(history: History) -> Iterator[str]:
    """An end is forced only after the deadline that a caller set."""
    for task in history.tasks.values():
        if task.forced and (task.force_at is None or (task.completed_at or 0) < task.force_at):
            yield f"{task.id} was forced at {task.completed_at}, but force_at is {task.force_at}"


def only_force_interrupts(history: History) -> Iterator[str]:
    """An interrupted model call has no tool call, and nothing follows an interrupted iteration."""
    for task, log in history.logs_by_task():
        iterations = [event for event in log if event.type == "iteration_completed"]
        for event in iterations:
            if event.is_model_call_interrupted and event.has_tool_call:
                yield f"{task.id}: iteration {event.number} has a tool call but no full model call"
            if not (event.is_model_call_interrupted or event.is_tool_call_interrupted):
                continue
            if event is not iterations[-1]:
                yield f"{task.id}: iteration {event.number} was interrupted, but others follow"
            if task.status in TERMINAL and not task.forced:
                yield f"{task.id}: iteration {event.number} was interrupted, but not by force"


PROMISES = (
    logs_have_no_gaps,
    promised_tasks_end_cancelled,
    tasks_begin_once,
    tasks_end_once,
    ends_agree_with_their_task,
    iterations_are_numbered,
    requests_are_recorded_once,
    one_iteration_follows_a_request,
    force_is_due,
    only_force_interrupts,
)


def violations(history: History) -> list[str]:
    """Returns one line for each violation of any promise."""
    return [violation for promise in PROMISES for violation in promise(history)]
