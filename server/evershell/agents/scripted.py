"""`scripted`: an agent without a model, which runs the commands in the task's description."""

import json
import re

from evershell.agents.active_task import TaskFailed
from evershell.agents.loop import AgentFunction, Task
from evershell.agents.reply import Reply
from evershell.agents.tools import ShellTool, ToolCall, ToolStatus

NAME = "scripted"
_TOKENS = re.compile(r"tokens: (\d{1,9}) (.*)")


def scripted_agent(shell: ShellTool) -> AgentFunction:
    """An agent that runs each non-blank line of the description as a shell command.

    N lines make N iterations. A line `fail: text` ends the task `failed` with that text. For a line
    `tokens: number command`, the model call reports that number of output tokens.
    """

    async def agent(task: Task) -> str:
        lines = [line.strip() for line in task.description.splitlines() if line.strip()]
        exited = 0
        async for step in task.iterations():
            step.reply.model = NAME
            call = await step.model_call(_next_call(lines, step.number, step.reply))
            if call is None:
                step.reply.content = "There was no command to run."
                return step.reply.content
            result = await step.tool_call(
                call.name, call.arguments, shell.run(call), call_id=call.id
            )
            exited += result.status is ToolStatus.EXITED
            if step.number == len(lines):
                has_exited = result.status is ToolStatus.EXITED
                return _summary(exited, len(lines)) if has_exited else ""
        return ""

    return agent


async def _next_call(lines: list[str], number: int, reply: Reply) -> ToolCall | None:
    """The shell call for the line with this number; None after the last line."""
    if number > len(lines):
        return None
    line = lines[number - 1]
    if line.startswith("fail:"):
        raise TaskFailed(line.removeprefix("fail:").strip())
    if tokens := _TOKENS.fullmatch(line):
        reply.output_tokens, line = int(tokens[1]), tokens[2]
    return ToolCall(id=f"call_{number}", name="shell", arguments=json.dumps({"command": line}))


def _summary(exited: int, commands: int) -> str:
    of_all = "" if exited == commands else f" of {commands}"
    return f"Ran {exited}{of_all} command{'' if commands == 1 else 's'}."
