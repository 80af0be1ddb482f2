"""What is special about the Claude Agent SDK: it runs a program, which has to start."""

import pytest
from evershell.workspace.v1.task_pb2 import Task

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
    assert (end.status, end.forced, len(iterations)) == (Task.cancelled, False, 0)
    (world.folder / "hold").unlink(missing_ok=True)
    assert not world.server.requests
    await world.next_task_runs()


async def test_an_end_of_the_program_fails_the_task(world: World) -> None:
    Claude.program(world.folder, "exit 3")
    await world.submit("t1", world.framework.says("never"))
    end, iterations = await world.end("t1")
    assert (end.status, len(iterations)) == (Task.failed, 0)
    Claude.program(world.folder)
    await world.next_task_runs()
