"""The adapter `process`: a command is one iteration, and can be interrupted only by killing it."""

import runpy
from pathlib import Path

import pytest

from evershell.agents.adapters import process
from evershell.core.task import TaskEnded, TaskStatus
from evershell.pod.process import become_subreaper
from tests.support.waiting import eventually_async
from tests.unit.agents.library_agents import are_alive
from tests.unit.agents.loop_world import Run

ROOT = Path(__file__).parents[3]
# A command that writes some output, then the ids of its processes, and runs until `go` exists.
WORKS = """
set -e
echo so far
setsid sleep 600 &
echo $$ $! > new
mv new pids
until [ -e go ]; do sleep 0.01; done
echo done
"""


@pytest.fixture(autouse=True)
def as_in_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become_subreaper()
    monkeypatch.chdir(tmp_path)


def shell(command: str) -> Run:
    return Run(process.agent("/bin/sh", "-c", command, environment={"NAME": "n"}))


async def test_a_command_works_on_a_task() -> None:
    run = shell('cat; echo " $NAME $(pwd)"')
    assert await run.end() == TaskEnded(status=TaskStatus.COMPLETED, result=f"d n {Path.cwd()}\n")
    (iteration,) = run.iterations
    tool = iteration["tool_call"]
    assert (tool["name"], tool["result"]["output"]) == ("process", f"d n {Path.cwd()}\n")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/bin/sh", "-c", "exit 3"), "/bin/sh ended with the exit code 3."),
        (("/missing",), "The command could not be started: "),
    ],
)
async def test_a_command_that_fails(command: tuple[str, ...], reason: str) -> None:
    ending = await Run(process.agent(*command)).end()
    assert ending.status is TaskStatus.FAILED
    assert ending.reason.startswith(reason)


async def test_a_command_has_a_time_limit(tmp_path: Path) -> None:
    run = Run(process.agent("/bin/sh", "-c", WORKS), timeout_seconds=1)
    assert (await run.end()).reason == "/bin/sh did not end within the limit of a tool call."
    assert run.iterations[0]["tool_call"]["result"]["status"] == "timed_out"
    assert not are_alive(tmp_path)


@pytest.mark.parametrize("force", [None, 0.0], ids=["at the end", "forced"])
async def test_a_cancellation_waits_for_the_command_and_a_forced_one_kills_it(
    tmp_path: Path, force: float | None
) -> None:
    run = shell(WORKS)
    await eventually_async((tmp_path / "pids").exists)
    assert are_alive(tmp_path)
    run.task.cancel.request(force)
    if force is None:
        (tmp_path / "go").touch()
    ending = await run.end()
    assert not are_alive(tmp_path)
    result = run.iterations[0]["tool_call"]["result"]
    if force is None:
        assert ending == TaskEnded(status=TaskStatus.CANCELLED, result="so far\ndone\n")
        assert result["status"] == "exited"
    else:
        assert ending == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
        assert (result["status"], result["output"]) == ("interrupted", "so far\n")


async def test_no_command_starts_after_a_cancellation(tmp_path: Path) -> None:
    run = shell("touch started")
    run.task.cancel.request()
    assert await run.end() == TaskEnded(status=TaskStatus.CANCELLED)
    assert not (tmp_path / "started").exists()


async def test_the_example() -> None:
    run = Run(runpy.run_path(f"{ROOT}/examples/process_agent.py")["agent"])
    assert (await run.end()).result == "D"
