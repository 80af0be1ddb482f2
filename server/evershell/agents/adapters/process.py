"""Any program as an agent: a command that works on a task in its own process.

A task is one iteration with one tool call, which runs the command. A cancellation lets the command
run to its end. A forced cancellation kills the command at the deadline.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from evershell.agents.active_task import TaskFailed
from evershell.agents.loop import AgentFunction, Task
from evershell.agents.tools import ToolResult, ToolStatus, execute


def agent(*command: str, environment: Mapping[str, str] | None = None) -> AgentFunction:
    """Returns a function for `run` that gives each task to a command.

    The command starts in the workspace's folder. It reads the description of the task from standard
    input, and what it prints is the result. It may run for TOOL_TIMEOUT_SECONDS. When it ends,
    every process that it has started ends too. An exit code other than 0 ends the task `failed`.
    `environment` is added to the agent's environment.
    """

    async def run(task: Task) -> str:
        async for step in task.iterations():
            call = _execute(command, environment or {}, task.description)
            result = await step.tool_call("process", {"command": command}, call)
            if result.status is ToolStatus.NOT_RUN:
                raise TaskFailed(result.output)
            if result.status is ToolStatus.TIMED_OUT:
                raise TaskFailed(f"{command[0]} did not end within the limit of a tool call.")
            if result.exit_code != 0:
                raise TaskFailed(f"{command[0]} ended with the exit code {result.exit_code}.")
            return result.output
        return ""

    return run


async def _execute(
    command: tuple[str, ...], environment: Mapping[str, str], description: str
) -> ToolResult:
    """Runs the command, with the description as its standard input."""
    folder = Path.cwd()
    with os.fdopen(os.memfd_create("task"), "wb+") as file:
        file.write(description.encode())
        file.seek(0)
        return await execute(
            command,
            directory=folder,
            environment={"HOME": str(folder), **os.environ, **environment},
            input_file=file.fileno(),
        )
