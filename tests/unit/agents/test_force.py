"""How the agent's loop handles a forced cancellation: what it interrupts, and what it keeps."""

import asyncio
import time

import pytest

from evershell.agents.active_task import TaskFailed
from evershell.core.task import IterationCompleted, TaskEnded, TaskStarted, TaskStatus
from tests.unit.agents.loop_world import REPLIES, World, a_reply, a_task, run_loop, wait_forever


async def test_force_interrupts_the_model_call_and_keeps_the_partial_reply() -> None:
    world, task = World(REPLIES), a_task()

    async def hang() -> None:
        for text in ("so ", "far\0"):
            world.partial.add(text)
        world.partial.model, world.partial.input_tokens, world.partial.output_tokens = "m-1", 5, 3
        asyncio.get_running_loop().call_soon(task.cancel.request, 0)
        await wait_forever()

    world.at["model 2"] = hang
    assert await run_loop(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    _, _, last, _ = world.committed
    assert isinstance(last, IterationCompleted)
    call = last.payload["model_call"]
    assert call.pop("duration_ms") >= 0
    content = "so far\N{REPLACEMENT CHARACTER}"
    assert call == {
        "model": "m-1",
        "content": content,
        "input_tokens": 5,
        "output_tokens": 3,
        "status": "interrupted",
    }
    assert last.payload.keys() == {"model_call"}
    # The iteration and the end are in one commit, so that nothing can come between them.
    assert world.trace[-1] == "commit IterationCompleted 2 TaskEnded"


@pytest.mark.parametrize("end", ["hangs", "fails", "is cancelled from within"])
async def test_force_before_any_reply_records_an_empty_model_call(end: str) -> None:
    raised = {
        "fails": TaskFailed("too late"),
        "is cancelled from within": asyncio.CancelledError(),
    }.get(end)
    world, task = World([raised or a_reply()]), a_task()

    async def begin() -> None:
        task.cancel.request(0)
        if end == "hangs":
            await wait_forever()

    world.at["model 1"] = begin
    assert await run_loop(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    _, iterated, _ = world.committed
    assert isinstance(iterated, IterationCompleted)
    assert (iterated.number, task.iterations, list(iterated.payload)) == (1, 1, ["model_call"])
    call = iterated.payload["model_call"]
    assert (call["status"], call["model"], call["content"], call["output_tokens"]) == (
        "interrupted",
        "a model",
        "",
        0,
    )


async def test_force_takes_precedence_over_the_timeout_of_the_model_call() -> None:
    world, task = World(REPLIES), a_task()

    async def hang() -> None:
        # The force deadline and the timeout both pass while the event loop is blocked, so the loop
        # finds both timers due at once.
        task.cancel.request(0.02)
        asyncio.get_running_loop().call_soon(time.sleep, 0.05)
        await wait_forever()

    world.at["model 1"] = hang
    assert await run_loop(world, task, timeout_seconds=0.01) == TaskEnded(
        status=TaskStatus.CANCELLED, forced=True
    )
    assert [type(event) for event in world.committed] == [
        TaskStarted,
        IterationCompleted,
        TaskEnded,
    ]


async def test_a_model_call_that_fails_before_the_force_is_due_is_a_failure() -> None:
    world, task = World([TaskFailed("no")]), a_task()
    world.at["model 1"] = lambda: task.cancel.request(3_000)
    assert await run_loop(world, task) == TaskEnded(status=TaskStatus.FAILED, reason="no")
    assert [type(event) for event in world.committed] == [TaskStarted, TaskEnded]


async def test_force_interrupts_the_tool_call_and_keeps_its_output() -> None:
    world, task = World(REPLIES), a_task()

    async def hang() -> None:
        loop = asyncio.get_running_loop()
        # Requests the cancellation without force, with a late deadline, with force at once, and
        # with a later deadline. The earliest deadline applies.
        loop.call_soon(task.cancel.request)
        loop.call_soon(task.cancel.request, 3_000)
        loop.call_later(0.001, task.cancel.request, 0)
        loop.call_later(0.002, task.cancel.request, 6_000)
        await wait_forever()

    world.at["tool 1"] = hang
    assert await run_loop(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    _, iterated, _ = world.committed
    assert isinstance(iterated, IterationCompleted)
    assert iterated.payload["tool_call"]["result"]["status"] == "interrupted"
    assert iterated.payload["tool_call"]["result"]["output"] == "so far"


async def test_force_between_the_calls_starts_no_tool() -> None:
    world, task = World(REPLIES), a_task()
    world.at["model 1"] = lambda: task.cancel.request(0)
    assert await run_loop(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    assert "tool 1" not in world.trace


async def test_force_after_the_end_of_the_iteration_interrupts_nothing() -> None:
    world, task = World(REPLIES), a_task()
    world.at["commit IterationCompleted 1"] = lambda: task.cancel.request(0)
    assert await run_loop(world, task) == TaskEnded(status=TaskStatus.CANCELLED)


async def test_force_due_after_the_end_of_the_iteration_interrupts_nothing() -> None:
    world, task = World(REPLIES), a_task()
    world.at["tool 1"] = lambda: task.cancel.request(3_000)
    assert await run_loop(world, task) == TaskEnded(status=TaskStatus.CANCELLED)
    assert len(world.committed) == 3
