"""Agent functions that do what they should not. Each task still ends once, with a clear reason."""

import asyncio
from typing import Any

import pytest

from evershell.agents import Task, TaskFailed
from evershell.core.task import Phase, TaskEnded, TaskStatus
from evershell.pod.process import become_subreaper
from tests.unit.agents.loop_world import Run, wait_forever


@pytest.fixture(autouse=True)
def as_in_an_agent() -> None:
    become_subreaper()


async def value(answer: Any) -> Any:
    return answer


async def ended(function: Any) -> tuple[TaskEnded, list[Any]]:
    run = Run(function)
    return await run.end(), run.iterations


# When and where calls are made


@pytest.mark.parametrize("kind", ["model", "tool"])
async def test_a_call_of_an_iteration_that_has_ended_fails_and_does_not_run(kind: str) -> None:
    began = []

    async def call() -> None:
        began.append(kind)

    async def agent(task: Task) -> None:
        steps = task.iterations()
        first = await anext(steps)
        await anext(steps)
        late = first.model_call(call()) if kind == "model" else first.tool_call("t", {}, call())
        with pytest.raises(RuntimeError, match="iteration that has ended"):
            await late

    _, iterations = await ended(agent)
    assert (began, len(iterations)) == ([], 1)
    assert "tool_call" not in iterations[0]


async def test_a_call_after_the_end_of_the_task_fails() -> None:
    kept = []

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            kept.append(each)
            return

    await ended(agent)
    with pytest.raises(RuntimeError, match="iteration that has ended"):
        await kept[0].model_call(value("said"))


async def test_a_task_in_the_background_makes_no_call_after_an_interruption() -> None:
    """The background task catches every CancelledError, and tries again."""
    begun, reached, outcomes = [], asyncio.Event(), list[str]()

    async def hang() -> None:
        begun.append(1)
        reached.set()
        await wait_forever()

    async def again_and_again(step: Any) -> None:
        while len(outcomes) < 5:
            try:
                await step.tool_call("t", {}, hang())
            except asyncio.CancelledError:
                outcomes.append("cancelled")

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            background.append(asyncio.create_task(again_and_again(each)))
            await wait_forever()

    background: list[asyncio.Task[None]] = []
    run = Run(agent)
    await reached.wait()
    run.task.cancel.request(0)
    assert (await run.end()).forced
    await asyncio.wait(background)
    assert begun == [1]
    assert len(run.iterations) == 1
    assert "tool_calls" not in run.iterations[0]


async def test_a_second_loop_continues_the_iterations() -> None:
    async def agent(task: Task) -> str:
        numbers = []
        for _ in range(2):
            async for each in task.iterations():
                await each.model_call(value("said"))
                numbers.append(each.number)
                if len(numbers) % 2 == 0:
                    break
        return str(numbers)

    ending, iterations = await ended(agent)
    assert (ending.result, len(iterations)) == ("[1, 2, 3, 4]", 4)


async def test_two_loops_at_the_same_time_fail() -> None:
    async def agent(task: Task) -> None:
        await anext(task.iterations())
        await asyncio.gather(anext(task.iterations()), anext(task.iterations()))

    run = Run(agent)
    run.world.at["commit IterationCompleted 1"] = lambda: asyncio.sleep(0)
    assert "two loops ask for the next iteration" in (await run.end()).reason


async def test_calls_inside_a_call_are_recorded_and_the_phase_is_that_of_the_last_one() -> None:
    phases = []

    def note() -> None:
        phases.append(run.task.phase)

    async def inner(step: Any) -> str:
        note()
        said = await step.model_call(value({"content": "said", "usage": {"input_tokens": 3}}))
        note()
        await step.tool_call("inner", {}, value("in"))
        return str(said["content"])

    async def agent(task: Task) -> str:
        async for each in task.iterations():
            await each.model_call(value({"usage": {"input_tokens": 2}}))
            answer = await each.tool_call("outer", {}, inner(each))
            note()
            return str(answer)
        return ""

    run = Run(agent)
    ending, (iteration,) = await run.end(), run.iterations
    assert ending.result == iteration["model_call"]["content"] == "said"
    assert iteration["model_call"]["input_tokens"] == 5
    assert [each["name"] for each in iteration["tool_calls"]] == ["outer", "inner"]
    assert phases == [Phase.TOOL_CALL, Phase.TOOL_CALL, Phase.NONE]


# What the function returns or raises


async def test_a_function_that_is_not_async_fails_the_task() -> None:
    def agent(task: Task) -> str:
        return "done"

    ending, _ = await ended(agent)
    assert ending.reason == "The agent is not an async function."


class Unreadable(Exception):
    """An exception whose text cannot be read."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Stop(BaseException):
    """An exception that is not a subclass of Exception."""


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        (b"a\xffb", "a\N{REPLACEMENT CHARACTER}b"),
        ({(1, 2): "key"}, "{(1, 2): 'key'}"),
        (CIRCLE, "[[...]]"),
        ("a\0b\ud800", "a" + "\N{REPLACEMENT CHARACTER}".join(["", "b", "", "", ""])),
    ],
    ids=["bytes", "keys", "circle", "text"],
)
async def test_what_a_tool_returns_is_recorded(answer: Any, output: str) -> None:
    async def agent(task: Task) -> None:
        async for each in task.iterations():
            assert await each.tool_call("t", answer, value(answer)) == answer
            return

    ending, (iteration,) = await ended(agent)
    assert ending.status is TaskStatus.COMPLETED, ending
    tool = iteration["tool_call"]
    assert (tool["arguments"], tool["result"]["output"]) == (output, output)
    assert tool["result"]["status"] == "exited"


async def test_an_object_that_cannot_be_shown_is_recorded_by_its_class() -> None:
    async def agent(task: Task) -> None:
        async for each in task.iterations():
            await each.tool_call("t", {}, value(Unreadable()))
            return

    _, (iteration,) = await ended(agent)
    assert "Unreadable object at" in iteration["tool_call"]["result"]["output"]


@pytest.mark.parametrize(
    ("error", "said"), [(Unreadable(), "Unreadable"), (Stop("now"), "Stop: now")]
)
@pytest.mark.parametrize("where", ["function", "model", "tool"])
async def test_any_exception_ends_the_task_with_its_name(
    error: BaseException, said: str, where: str
) -> None:
    async def fail() -> None:
        raise error

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            if where == "function":
                await fail()
            await (each.model_call(fail()) if where == "model" else each.tool_call("t", {}, fail()))

    ending, iterations = await ended(agent)
    assert (ending.status, ending.reason) == (TaskStatus.FAILED, f"The agent failed: {said}")
    if where == "tool":
        assert iterations[0]["tool_call"]["result"]["output"] == said


async def test_the_reason_of_a_failure_in_a_task_group_is_not_that_of_the_group() -> None:
    async def fail() -> None:
        raise TaskFailed("no")

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            async with asyncio.TaskGroup() as group:
                group.create_task(each.tool_call("t", {}, fail()))

    ending, _ = await ended(agent)
    assert ending.reason == "no"


async def test_fields_of_the_reply_may_have_no_value() -> None:
    """Fields and parts of a reply may be None, because SDKs may stream None."""

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            reply: Any = each.reply
            reply.model = reply.input_tokens = None
            reply.output_tokens = float("nan")
            for part in ("sa", None, "id"):
                reply.add(part)
            await each.model_call(value(None))
            await each.tool_call("t", {}, value(None), call_id=7)  # type: ignore[arg-type]
            return

    ending, (iteration,) = await ended(agent)
    assert ending.status is TaskStatus.COMPLETED, ending
    call = iteration["model_call"]
    assert (call["model"], call["content"]) == ("", "said")
    assert (call["input_tokens"], call["output_tokens"]) == (0, 0)
    assert iteration["tool_call"]["id"] == "7"


class Lazy:
    """An answer whose parts the agent reads only later."""

    def __init__(self) -> None:
        self.content = iter(["sa", "id"])

    def usage(self, kind: str) -> int:
        return len(kind)


async def test_the_answer_of_a_model_is_left_as_it_is() -> None:
    async def agent(task: Task) -> str:
        async for each in task.iterations():
            answer = await each.model_call(value(Lazy()))
            return "".join(answer.content)
        return ""

    ending, _ = await ended(agent)
    assert ending.result == "said"
