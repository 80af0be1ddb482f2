"""The scripted agent."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from evershell.agents.program import UnknownModelError, create_agent
from evershell.agents.scripted import scripted_agent
from evershell.agents.tools import ShellTool, ToolCall, ToolResult, ToolStatus
from evershell.core.task import IterationCompleted, TaskEnded, TaskStatus
from evershell.pod.spec import PodSpec
from tests.unit.agents.loop_world import World, a_task, run_loop


class Shell:
    """A shell whose commands end with `statuses`, in this order, and then always with `exited`."""

    def __init__(self, statuses: Sequence[ToolStatus]) -> None:
        self.commands: list[str] = []
        self._statuses = list(statuses)

    async def run(self, call: ToolCall) -> ToolResult:
        self.commands.append(call.arguments)
        status = self._statuses.pop(0) if self._statuses else ToolStatus.EXITED
        return ToolResult(status=status)


async def _end(description: str, *statuses: ToolStatus) -> tuple[TaskEnded, Shell, list[Any]]:
    world, shell = World([]), Shell(statuses)
    function = scripted_agent(cast(ShellTool, shell))
    ending = await run_loop(world, a_task(description=description), function=function)
    assert ending is not None
    iterations = [e.payload for e in world.committed if isinstance(e, IterationCompleted)]
    return ending, shell, iterations


async def test_each_line_is_a_command_and_an_iteration() -> None:
    ending, shell, iterations = await _end(" a \n\n b\n")
    assert shell.commands == ['{"command": "a"}', '{"command": "b"}']
    assert ending == TaskEnded(status=TaskStatus.COMPLETED, result="Ran 2 commands.")
    assert {each["model_call"]["content"] for each in iterations} == {""}
    assert len({each["tool_call"]["id"] for each in iterations}) == 2
    assert (await _end("a"))[0].result == "Ran 1 command."


async def test_a_line_can_report_tokens() -> None:
    _, shell, iterations = await _end("tokens: 70 a\nb\ntokens: x")
    assert shell.commands == [f'{{"command": "{each}"}}' for each in ("a", "b", "tokens: x")]
    assert [each["model_call"]["output_tokens"] for each in iterations] == [70, 0, 0]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (ToolStatus.EXITED, "Ran 2 of 3 commands."),
        (ToolStatus.TIMED_OUT, ""),
        (ToolStatus.NOT_RUN, ""),
    ],
)
async def test_the_result_counts_only_the_commands_that_exited(
    last: ToolStatus, expected: str
) -> None:
    ending, _, _ = await _end("a\nb\nc", ToolStatus.TIMED_OUT, ToolStatus.EXITED, last)
    assert (ending.status, ending.result) == (TaskStatus.COMPLETED, expected)


async def test_a_fail_line_ends_the_task_with_its_text() -> None:
    ending, shell, iterations = await _end("a\nfail: broke\nb")
    assert ending == TaskEnded(status=TaskStatus.FAILED, reason="broke")
    assert (len(shell.commands), len(iterations)) == (1, 1)


async def test_a_blank_script_ends_at_once() -> None:
    ending, _, (iteration,) = await _end(" \n")
    assert ending.result == iteration["model_call"]["content"] == "There was no command to run."
    assert "tool_call" not in iteration


def test_the_error_names_an_unknown_model() -> None:
    with pytest.raises(UnknownModelError, match="oracle"):
        create_agent(spec(model="oracle"))


def spec(**changes: Any) -> PodSpec:
    settings: dict[str, Any] = {
        "workspace_id": "ws_1",
        "epoch": 1,
        "runtime_addresses": [],
        "runtime_secret": "",
        "signal_secret": "",
    }
    return PodSpec(**(settings | changes))
