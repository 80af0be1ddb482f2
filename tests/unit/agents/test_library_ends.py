"""How a task of a custom agent ends. test_force.py and test_loop.py test the loop itself."""

import asyncio
from contextlib import suppress

import pytest

from evershell.agents import Task, loop
from evershell.core.task import TaskEnded, TaskStatus
from evershell.pod.process import become_subreaper
from tests.unit.agents.loop_world import Run, calling, end_late, force, value, wait_forever


@pytest.fixture(autouse=True)
def as_in_an_agent() -> None:
    become_subreaper()


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


@pytest.mark.parametrize("is_forced", [False, True])
async def test_what_follows_a_cancelled_loop_has_a_limit(
    monkeypatch: pytest.MonkeyPatch, is_forced: bool
) -> None:
    monkeypatch.setattr(loop, "_AFTER_SECONDS", 3_000 if is_forced else 0.01)

    async def agent(task: Task) -> str:
        async for _ in task.iterations():
            run.task.cancel.request(0 if is_forced else None)
        await wait_forever()
        return "never"

    run = Run(agent)
    assert await run.end() == TaskEnded(status=TaskStatus.CANCELLED)
    assert len(run.iterations) == 1


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
    assert await force(run, reached) == TaskEnded(
        status=TaskStatus.CANCELLED, forced=True, result="so far"
    )
    assert [each["model_call"]["content"] for each in run.iterations] == ["said"]


async def test_force_before_the_first_iteration_records_none() -> None:
    reached = asyncio.Event()

    async def agent(task: Task) -> None:
        reached.set()
        await wait_forever()

    run = Run(agent)
    assert await force(run, reached) == TaskEnded(status=TaskStatus.CANCELLED)
    assert run.iterations == []


async def test_force_interrupts_all_calls_of_an_iteration() -> None:
    reached, interrupted = asyncio.Event(), list[str]()

    async def tool(name: str) -> None:
        try:
            if name == "b":
                reached.set()
            await wait_forever()
        finally:
            interrupted.append(name)

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            await asyncio.gather(*(each.tool_call(name, {}, tool(name)) for name in "ab"))

    run = Run(agent)
    assert (await force(run, reached)).forced
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
    assert (await force(run, reached)).forced
    results = [each["result"] for each in run.iterations[0]["tool_calls"]]
    assert [(each["status"], each["output"]) for each in results] == [
        ("exited", "a"),
        ("interrupted", "so far"),
        ("exited", "c"),
    ]


async def test_an_agent_that_catches_the_interruption_keeps_its_task_open() -> None:
    """Only the control plane can end the task, by ending the pod of the agent."""
    reached, may_end = asyncio.Event(), asyncio.Event()

    async def agent(task: Task) -> None:
        async for each in task.iterations():
            reached.set()
            await end_late(may_end)
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
