"""Tests that only the Claude Agent SDK needs, because it runs a separate program."""

import pytest

from evershell.core.task import TaskStatus
from tests.unit.agents.library_agents import are_alive
from tests.unit.agents.long.adapters.conftest import World
from tests.unit.agents.long.adapters.frameworks import Claude

pytestmark = pytest.mark.parametrize("world", ["claude"], indirect=True)


@pytest.mark.parametrize("force", [None, 0.0], ids=["at the end", "forced"])
async def test_cancelled_while_the_program_starts(world: World, force: float | None) -> None:
    (world.folder / "hold").touch()
    await world.submit("t1", world.framework.says("never"))
    await world.reached("claude.began")
    await world.cancel("t1", force)
    if force is None:
        (world.folder / "hold").unlink()
    end, iterations = await world.end("t1")
    assert (end.status, end.forced, len(iterations)) == (TaskStatus.CANCELLED, False, 0)
    (world.folder / "hold").unlink(missing_ok=True)
    assert not world.server.requests
    await world.next_task_runs()


async def test_an_end_of_the_program_fails_the_task(world: World) -> None:
    Claude.program(world.folder, "exit 3")
    await world.submit("t1", world.framework.says("never"))
    end, iterations = await world.end("t1")
    assert (end.status, len(iterations)) == (TaskStatus.FAILED, 0)
    Claude.program(world.folder)
    await world.next_task_runs()


async def test_an_agent_that_a_tool_runs_is_part_of_the_tool_call(world: World) -> None:
    fw = world.framework
    assert isinstance(fw, Claude)
    arguments = {"description": "d", "prompt": "p", "subagent_type": "inner"}
    await world.submit(
        "t1",
        fw.calls_tool("Agent", arguments),
        fw.calls("echo inner"),
        fw.says("the inner result"),
        fw.says("the result"),
    )
    end, iterations = await world.end("t1")
    assert (end.status, end.result, len(iterations)) == (TaskStatus.COMPLETED, "the result", 2)
    assert "the inner result" in iterations[0].tool_call.result.output
    assert iterations[0].model_call.output_tokens == 7


async def test_no_process_outlives_the_task(world: World) -> None:
    fw = world.framework
    assert isinstance(fw, Claude)
    command = f"setsid sleep 600 > /dev/null 2>&1 & echo $! > {world.folder}/pids"
    await world.submit(
        "t1", fw.calls_tool("Bash", {"command": command, "description": "d"}), fw.says("the result")
    )
    end, iterations = await world.end("t1")
    assert (end.status, len(iterations)) == (TaskStatus.COMPLETED, 2)
    assert not are_alive(world.folder)
