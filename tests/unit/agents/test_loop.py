"""The contract of the agent's loop. Tests can block the model, the tool and the committer."""

import asyncio
from typing import Any

import pytest

from evershell.agents.active_task import TaskFailed
from evershell.agents.loop import run_task
from evershell.agents.step import Limits
from evershell.core.task import IterationCompleted, Phase, TaskEnded, TaskStarted, TaskStatus
from tests.unit.agents.loop_world import REPLIES, World, a_reply, a_task, run_loop, wait_forever


async def test_the_steps_of_a_task_have_this_order() -> None:
    world = World(REPLIES)
    ending = await run_loop(world, a_task())
    assert ending == TaskEnded(status=TaskStatus.COMPLETED, result="the answer")
    expected = ["commit TaskStarted"]
    for number in (1, 2, 3):
        expected += [f"model {number}", f"tool {number}", f"commit IterationCompleted {number}"]
    # The last iteration and the end are in one commit, so that nothing can come between them.
    expected[-1] += " TaskEnded"
    assert world.trace == expected


async def test_a_final_reply_without_a_tool_call_records_none() -> None:
    world = World([a_reply("done", calls_tool=False, final=True)])
    await run_loop(world, a_task())
    started, iterated, _ending = world.committed
    assert isinstance(started, TaskStarted)
    assert isinstance(iterated, IterationCompleted)
    assert "tool_call" not in iterated.payload
    assert iterated.payload["model_call"]["status"] == "completed"


@pytest.mark.parametrize(
    ("step", "iterations"),
    [
        ("commit TaskStarted", 0),
        ("model 1", 1),
        ("tool 1", 1),
        ("commit IterationCompleted 1", 1),
        ("model 2", 2),
        ("tool 2", 2),
        ("commit IterationCompleted 2", 2),
    ],
)
async def test_a_cancellation_at_any_step_lets_only_the_current_iteration_finish(
    step: str, iterations: int
) -> None:
    world, task = World(REPLIES), a_task()
    world.at[step] = task.cancel.request
    assert await run_loop(world, task) == TaskEnded(status=TaskStatus.CANCELLED)
    assert [type(event) for event in world.committed] == [
        TaskStarted,
        *[IterationCompleted] * iterations,
        TaskEnded,
    ]
    assert [step for step in world.trace if step.startswith("model")] == [
        f"model {n + 1}" for n in range(iterations)
    ]


@pytest.mark.parametrize("step", ["model 3", "tool 3"])
async def test_a_cancellation_during_the_last_iteration_keeps_the_answer(step: str) -> None:
    world, task = World(REPLIES), a_task()
    world.at[step] = task.cancel.request
    assert await run_loop(world, task) == TaskEnded(
        status=TaskStatus.CANCELLED, result="the answer"
    )


async def test_too_many_iterations_fail_with_a_reason() -> None:
    ending = await run_loop(World(REPLIES), a_task(max_iterations=2))
    assert ending is not None
    assert (ending.status, "2" in ending.reason) == (TaskStatus.FAILED, True)


async def test_a_task_may_use_all_its_iterations() -> None:
    ending = await run_loop(World(REPLIES), a_task(max_iterations=3))
    assert ending is not None
    assert ending.status is TaskStatus.COMPLETED


async def test_a_model_failure_is_the_reason_of_the_end() -> None:
    ending = await run_loop(World([a_reply(), TaskFailed("no\0 money")]), a_task())
    assert ending == TaskEnded(status=TaskStatus.FAILED, reason="no\N{REPLACEMENT CHARACTER} money")


@pytest.mark.parametrize("raised", [KeyError("x"), asyncio.CancelledError()])
async def test_an_exception_of_a_model_or_a_tool_fails_only_the_task(raised: Any) -> None:
    name = "KeyError" if isinstance(raised, KeyError) else "the call cancelled itself"
    for world in (World([raised]), World(REPLIES, [raised])):
        ending = await run_loop(world, a_task())
        assert ending is not None
        assert (ending.status, name in ending.reason) == (TaskStatus.FAILED, True)


async def test_a_model_that_does_not_answer_fails_at_its_limit() -> None:
    world = World(REPLIES)
    world.at["model 1"] = wait_forever
    ending = await run_loop(world, a_task(), timeout_seconds=0.01)
    assert ending is not None
    assert (ending.status, "0.01 seconds" in ending.reason) == (TaskStatus.FAILED, True)


@pytest.mark.parametrize(
    ("step", "events"), [("commit TaskStarted", 1), ("commit IterationCompleted 2", 3)]
)
async def test_a_task_that_the_reply_does_not_name_is_dropped(step: str, events: int) -> None:
    world = World(REPLIES)
    world.at[step] = lambda: setattr(world, "dropped", True)
    assert await run_loop(world, a_task()) is None
    assert len(world.committed) == events
    assert world.trace[-1] == step


@pytest.mark.parametrize("step", ["model 1", "tool 1"])
async def test_a_cancelled_loop_ends_its_call_and_commits_nothing_more(step: str) -> None:
    world = World(REPLIES)
    reached, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        reached.set()
        try:
            await wait_forever()
        finally:
            ended.set()

    world.at[step] = hang
    running = asyncio.create_task(run_loop(world, a_task()))
    await reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    if step == "model 1":
        assert ended.is_set()
    assert [type(event) for event in world.committed] == [TaskStarted]


async def test_a_refused_iteration_fails_the_task() -> None:
    world = World(REPLIES)
    world.rejects = IterationCompleted
    ending = await run_loop(world, a_task())
    assert ending is not None
    assert ending.status is TaskStatus.FAILED


async def test_a_task_that_an_earlier_process_started_fails() -> None:
    world = World(REPLIES)
    ending = await run_loop(world, a_task(iterations=2))
    assert ending is not None
    assert (ending.status, world.trace[1:]) == (TaskStatus.FAILED, ["commit TaskEnded"])


async def test_each_phase_of_an_iteration_is_reported_and_its_end_is_left_to_the_commit() -> None:
    world, task, phases = World([a_reply("x", final=True)]), a_task(), list[Phase]()
    await run_task(
        world.agent,
        task,
        world.commit,
        Limits(model_timeout_seconds=60, tool_timeout_seconds=60),
        lambda: phases.append(task.phase),
    )
    assert phases == [Phase.MODEL_CALL, Phase.TOOL_CALL]
    assert task.phase is Phase.NONE
