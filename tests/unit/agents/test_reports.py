"""What an agent that uses the library reports about an iteration before its tool calls begin."""

import asyncio
import json
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from evershell.agents.active_task import TaskFailed
from evershell.agents.loop import RejectedError, Task
from evershell.agents.runtime_client import encode_commit
from evershell.core.agent_rules import check_events
from evershell.core.prices import PriceList, Prices
from evershell.core.task import MAX_TOOL_CALLS, TaskEnded, TaskStatus
from tests.unit.agents.loop_world import (
    REPLIES,
    Run,
    World,
    a_task,
    calling,
    force,
    run_loop,
    value,
    wait_forever,
)


def started(run: Run | World) -> list[list[str]]:
    """Returns the ids of the calls in each report."""
    world = run.world if isinstance(run, Run) else run
    return [[each["id"] for each in report.payload["started_calls"]] for report in world.reports]


async def test_a_tool_begins_after_its_iteration_is_reported() -> None:
    world, task = World(REPLIES), a_task()
    order = list[str]()
    for number in (1, 2, 3):
        world.at[f"report {number}"] = partial(order.append, f"report {number}")
        world.at[f"tool {number}"] = partial(order.append, f"tool {number}")
    await run_loop(world, task)
    assert order == [f"{kind} {number}" for number in (1, 2, 3) for kind in ("report", "tool")]
    assert started(world) == [["c"]] * 3


async def test_a_report_has_the_usage_and_the_call() -> None:
    answer = {"model": "m", "content": "x", "usage": {"input_tokens": 3, "output_tokens": 2}}

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            await step.model_call(value(answer))
            await step.tool_call("search", {"for": "it"}, value("found"), call_id="call_9")
            return

    run = Run(agent)
    await run.end()
    (report,) = run.world.reports
    reply = report.payload["model_call"]
    assert (report.number, reply["model"]) == (1, "m")
    assert (reply["input_tokens"], reply["output_tokens"], "content" in reply) == (3, 2, False)
    arguments = json.dumps({"for": "it"})
    assert report.payload["started_calls"] == [
        {"id": "call_9", "name": "search", "arguments": arguments}
    ]
    check_events([report])


async def test_an_iteration_without_a_tool_call_is_not_reported() -> None:
    async def agent(task: Task) -> None:
        async for step in task.iterations():
            await step.model_call(value("done"))
            return

    run = Run(agent)
    await run.end()
    assert started(run) == []


async def test_tool_calls_that_begin_together_share_a_report() -> None:
    run = Run(calling(a=value("1"), b=value("2"), c=value("3")))
    assert (await run.end()).result == "1 2 3"
    assert started(run) == [["call_1", "call_1_2", "call_1_3"]]


async def test_one_after_the_other_each_is_reported_and_announced_ones_share_a_report() -> None:
    async def agent(task: Task) -> None:
        async for step in task.iterations():
            if step.number == 2:
                await step.announce(("t", {}, "x"), ("t", {}, "y"))
            for call_id in "xy":
                await step.tool_call("t", {}, value(""), call_id=call_id)
            if step.number == 2:
                return

    run = Run(agent)
    await run.end()
    assert started(run) == [["x"], ["x", "y"], ["x", "y"]]
    assert [report.number for report in run.world.reports] == [1, 1, 2]


@pytest.mark.parametrize(("length", "has_price"), [(200, True), (201, False)])
async def test_the_longest_name_of_a_model_with_a_price_is_reported(
    length: int, has_price: bool
) -> None:
    name = "\N{EURO SIGN}" * length
    prices = PriceList(own={each * "\N{EURO SIGN}": Prices({}) for each in (200, 201)})

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            await step.model_call(value({"model": name, "content": "x"}))
            await step.tool_call("t", {}, value(""))
            return

    run = Run(agent)
    await run.end()
    (report,) = run.world.reports
    assert prices.has(report.payload["model_call"]["model"]) is has_price


async def test_the_largest_report_is_within_the_bounds() -> None:
    long = "\N{EURO SIGN}" * 10_000

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            step.reply.model = long
            calls = [(long, {"text": long}, f"{number} {long}") for number in range(MAX_TOOL_CALLS)]
            await step.announce(*calls)
            return

    run = Run(agent)
    await run.end()
    (report,) = run.world.reports
    message = encode_commit("t", [report]).open_iteration
    assert len(message.started_calls) == MAX_TOOL_CALLS
    check_events([type(report)(report.number, report.payload, message.ByteSize())])


async def test_force_during_a_report_begins_no_tool() -> None:
    reached, began = asyncio.Event(), list[str]()

    async def tool() -> None:
        began.append("tool")

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            await step.model_call(value("said"))
            await step.tool_call("t", {}, tool())

    run = Run(agent)

    async def hang() -> None:
        reached.set()
        await wait_forever()

    run.world.at["report 1"] = hang
    ending = await force(run, reached)
    assert (ending.status, ending.forced, began) == (TaskStatus.CANCELLED, True, [])
    (iteration,) = run.iterations
    assert "tool_call" not in iteration


async def test_after_a_report_that_brings_force_announce_does_not_return() -> None:
    """The announced tool belongs to another program, which begins it after `announce` returns."""
    began = list[str]()

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            await step.model_call(value("said"))
            await step.announce(("t", {}, "x"))
            began.append("a tool of another program")

    run = Run(agent)
    run.world.at["report 1"] = lambda: run.task.cancel.request(0)
    ending = await run.end()
    assert (ending.status, ending.forced, began) == (TaskStatus.CANCELLED, True, [])


async def test_a_tool_call_over_the_limit_is_refused_each_time() -> None:
    """The agent's function catches TaskFailed and continues, so it goes over the limit twice."""
    began = list[str]()

    async def tool(call_id: str) -> None:
        began.append(call_id)

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            calls = [str(each) for each in range(MAX_TOOL_CALLS + 1)]
            with pytest.raises(TaskFailed):
                await step.announce(*(("t", {}, each) for each in calls))
            for each in calls:
                with suppress(TaskFailed):
                    await step.tool_call("t", {}, tool(each), call_id=each)
            return

    run = Run(agent)
    await run.end()
    assert len(began) == MAX_TOOL_CALLS
    assert [len(ids) for ids in started(run)] == list(range(1, MAX_TOOL_CALLS + 1))


async def test_force_does_not_wait_for_a_report_that_the_function_does_not_await() -> None:
    reached, began, others = asyncio.Event(), list[str](), list[asyncio.Task[None]]()

    async def tool() -> None:
        began.append("tool")

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            others.append(asyncio.create_task(step.tool_call("t", {}, tool())))
            await wait_forever()

    run = Run(agent)
    may_end = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await may_end.wait()

    run.world.at["report 1"] = hang
    assert (await force(run, reached)).forced
    may_end.set()
    await asyncio.wait(others)
    assert others[0].cancelled() and began == []


@pytest.mark.parametrize("is_rejected", [False, True])
async def test_a_report_whose_answer_ends_the_task_begins_no_tool(is_rejected: bool) -> None:
    """The agent's function catches CancelledError and continues, but its tools do not begin."""
    began = list[str]()

    async def tool() -> None:
        began.append("tool")

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            for _ in range(2):
                with pytest.raises(asyncio.CancelledError):
                    await step.tool_call("t", {}, tool())

    run = Run(agent)

    def answer() -> Any:
        run.world.dropped = not is_rejected
        if is_rejected:
            raise RejectedError("no")

    run.world.at["report 1"] = answer
    ending = await run._running
    assert began == []
    if is_rejected:
        assert isinstance(ending, TaskEnded) and "could not be recorded: no" in ending.reason
    else:
        assert ending is None


async def test_an_iteration_has_at_most_so_many_tool_calls() -> None:
    async def agent(task: Task) -> None:
        async for step in task.iterations():
            await step.announce(*(("t", {}, str(each)) for each in range(MAX_TOOL_CALLS + 1)))

    ending = await Run(agent).end()
    assert ending.status is TaskStatus.FAILED and "more than 128 tool calls" in ending.reason
