"""What an agent reports about its running calls, with real commands."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
from evershell.agent.v1.agent_service_pb2 import CurrentIteration
from evershell.workspace.v1 import task_pb2

from evershell.agents import Task, own_keys, service
from evershell.agents.loop import AgentFunction
from evershell.agents.session import Session
from evershell.agents.shutdown import Shutdown
from evershell.agents.tools import ShellTool
from evershell.pod.messages import (
    MAX_ARGUMENTS_BYTES,
    MAX_LAST_OUTPUT_BYTES,
    MAX_NAME_BYTES,
    MAX_RUNNING_CALLS,
)
from evershell.pod.process import become_subreaper
from tests.support.waiting import eventually_async
from tests.unit.agents.conftest import shell_call
from tests.unit.agents.loop_world import Run, wait_forever

MODEL_CALL, TOOL_CALL = task_pb2.Task.model_call, task_pb2.Task.tool_call
KEY = "QZXJKVWYHG"


@pytest.fixture(autouse=True)
def as_in_an_agent() -> None:
    become_subreaper()


class Reported:
    """Reads what the agent reports about the task of a run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._session = Session(no_work, Shutdown(), lambda: None, structlog.get_logger())
        self._session._task = run.task

    def now(self, task_id: str = "t1") -> CurrentIteration:
        return service.current_iteration(self._session, task_id)

    async def calls(self, count: int) -> Sequence[task_pb2.RunningCall]:
        """Waits until there are `count` calls, and returns them."""
        await eventually_async(lambda: len(self.now().calls) == count)
        return self.now().calls

    async def output(self, expected: str) -> None:
        """Waits until the last call has this output."""
        await eventually_async(lambda: self.now().calls[-1].output == expected)


async def no_work(task: object) -> None:
    raise AssertionError("the session starts no task")


@asynccontextmanager
async def reported(function: AgentFunction) -> AsyncIterator[Reported]:
    run = Run(function)
    try:
        yield Reported(run)
    finally:
        run.drop()
        with suppress(asyncio.CancelledError):
            await run.end()


async def test_a_command_is_reported_with_its_output_while_it_runs(tmp_path: Path) -> None:
    shell, go_on = ShellTool(tmp_path, "ws_1", 7), tmp_path / "go_on"
    call = shell_call(f"printf 'one\\ntw'; until [ -e {go_on} ]; do sleep 0.02; done; echo o; cat")

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            await step.tool_call(call.name, call.arguments, shell.run(call))
            if step.number == 2:
                await wait_forever()

    async with reported(agent) as seen:
        (first,) = await seen.calls(1)
        assert (first.phase, first.name, first.arguments) == (TOOL_CALL, "shell", call.arguments)
        await seen.output("one\ntw")
        go_on.touch()
        await eventually_async(lambda: seen.now().number == 2)


async def test_the_duration_is_that_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def agent(task: Task) -> None:
        async for step in task.iterations():
            await step.model_call(wait_forever())

    async with reported(agent) as seen:
        await seen.calls(1)
        began = time.monotonic()
        with monkeypatch.context() as later:
            later.setattr(time, "monotonic", lambda: began + 42)
            (call,) = seen.now().calls
        # The call may have begun before `began`: `eventually_async` pauses between two looks.
        assert 42_000 <= call.duration_ms < 72_000


async def test_calls_at_the_same_time_are_reported_in_their_order(tmp_path: Path) -> None:
    shell = ShellTool(tmp_path, "ws_1", 7)

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            step.reply.model = "a model"
            step.reply.add("so ")
            step.reply.add("far")
            commands = [shell_call(f"echo {number}; sleep 600") for number in (1, 2)]
            await asyncio.gather(
                step.model_call(wait_forever()),
                *(step.tool_call(each.name, "{}", shell.run(each)) for each in commands),
                step.tool_call("a function", {"a": 1}, wait_forever()),
            )

    async with reported(agent) as seen:
        await seen.calls(4)
        await eventually_async(lambda: all(call.output for call in seen.now().calls[:3]))
        assert [(call.phase, call.name, call.output) for call in seen.now().calls] == [
            (MODEL_CALL, "a model", "so far"),
            (TOOL_CALL, "shell", "1\n"),
            (TOOL_CALL, "shell", "2\n"),
            (TOOL_CALL, "a function", ""),
        ]
        assert json.loads(seen.now().calls[3].arguments) == {"a": 1}
        assert seen.now("t2") == CurrentIteration()


async def test_a_report_is_bounded_and_has_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(own_keys._names, KEY, "[name]")
    shell = ShellTool(tmp_path, "ws_1", 7)
    # The output is too long for a report, and ends with the first characters of a key.
    call = shell_call(f"yes {KEY} | head -c 100000; printf {KEY[:6]}; touch printed; sleep 600")

    async def agent(task: Task) -> None:
        async for step in task.iterations():
            others: list[Any] = [
                step.tool_call(f"{KEY} \0" * 1_000, f"{KEY} " * 10_000, wait_forever())
                for _ in range(MAX_RUNNING_CALLS + 1)
            ]
            await asyncio.gather(step.tool_call("shell", {}, shell.run(call)), *others)

    async with reported(agent) as seen:
        await eventually_async((tmp_path / "printed").exists)
        await seen.calls(MAX_RUNNING_CALLS)
        # The file is created after the output was printed, but the agent may not have read all of
        # it yet.
        await eventually_async(lambda: len(seen.now().calls[0].output) > 8_000)
        report = seen.now()
        assert not set(report.calls[0].output) & set(KEY)
        for each in report.calls:
            assert len(each.name.encode()) <= MAX_NAME_BYTES
            assert len(each.arguments.encode()) <= MAX_ARGUMENTS_BYTES
            assert len(each.output.encode()) <= MAX_LAST_OUTPUT_BYTES
        texts = report.calls[-1].name + report.calls[-1].arguments
        assert "[name]" in texts and KEY not in texts and "\0" not in texts
