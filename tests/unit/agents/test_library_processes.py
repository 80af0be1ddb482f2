"""Threads and processes that a custom agent starts."""

import asyncio
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evershell.agents import Task, in_process, in_thread
from evershell.pod.process import become_subreaper
from tests.support.alive import is_alive
from tests.support.waiting import eventually_async
from tests.unit.agents import library_agents
from tests.unit.agents.loop_world import Run, force, wait_forever


@pytest.fixture(autouse=True)
def as_in_an_agent() -> None:
    become_subreaper()


async def test_a_function_runs_in_a_thread_or_in_a_process() -> None:
    for place in (in_thread, in_process):
        assert await place(library_agents.double, 21) == 42
        with pytest.raises(ValueError, match=r"^no$"):
            await place(library_agents.refuse, "no")


async def test_a_program_without_a_file_calls_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # A program that is run with `python -c` has a main module without a file.
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
        await force(Run(agent), reached)
        assert is_alive(other.pid)
    finally:
        other.kill()
        await other.wait()
