"""The messages of a chat in which a model calls the tool `shell`."""

import json
import re
from collections.abc import Sequence
from typing import Any

from evershell.agents.completion import Message
from evershell.agents.tools import ShellTool, ToolCall, ToolResult, ToolStatus

_SYSTEM_PROMPT = """\
You carry out a task by running shell commands. Call the tool `shell` with one command at a time; \
you get its exit code and its output, standard output and standard error as one text. Every \
command starts in the same folder, in a new shell without input. All processes that it leaves \
running are killed when it exits. When the task is done, or cannot be done, answer without calling \
a tool: that answer is the task's result."""

TOOLS: Sequence[dict[str, Any]] = (
    {
        "type": "function",
        "function": {
            "name": ShellTool.name,
            "description": "Runs a command with /bin/sh in the workspace's folder.",
            "parameters": {
                "type": "object",
                "properties": {
                    "command": {"type": "string", "description": "The command, as after `sh -c`."}
                },
                "required": ["command"],
                "additionalProperties": False,
            },
        },
    },
)

# The characters that the protocol does not allow in the name of a function.
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_MAX_NAME_CHARACTERS = 64


def begin(description: str) -> list[dict[str, Any]]:
    """The messages with which the chat about a task begins."""
    return [
        {"role": "system", "content": _SYSTEM_PROMPT},
        {"role": "user", "content": description},
    ]


def call_of(message: Message, number: int) -> ToolCall | None:
    """The tool call that the message asks for, in the iteration of this number.

    An iteration has one tool call. Endpoints that ignore `parallel_tool_calls` may send several;
    only the first is used. The chat does not contain the others, because the protocol requires a
    result for each call in it. The model can repeat them after the first one's result.
    """
    if not message.tool_calls:
        return None
    call = message.tool_calls[0]
    return ToolCall(
        id=call.id or f"call_{number}",
        name=call.function.name or "",
        arguments=call.function.arguments_text,
    )


def exchange(content: str, call: ToolCall, result: ToolResult) -> list[dict[str, Any]]:
    """The model's message with a tool call, and the message with its result."""
    function = {
        "name": _acceptable_name(call.name),
        "arguments": _acceptable_arguments(call.arguments),
    }
    return [
        {
            "role": "assistant",
            "content": content or None,
            "tool_calls": [{"id": call.id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call.id, "content": _result_text(result)},
    ]


def _acceptable_name(name: str) -> str:
    """Makes the name valid.

    An endpoint may refuse the whole chat for one invalid name, even if its own model produced
    it.
    """
    return _NOT_IN_A_NAME.sub("_", name)[:_MAX_NAME_CHARACTERS] or "_"


def _acceptable_arguments(arguments: str) -> str:
    """Makes the arguments a JSON object, because many endpoints parse them as one."""
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    return arguments if is_object else json.dumps({"malformed": arguments})


def _result_text(result: ToolResult) -> str:
    match result.status:
        case ToolStatus.EXITED:
            headline = f"Exit code {result.exit_code}."
        case ToolStatus.TIMED_OUT:
            headline = "The command was killed at its time limit."
        case ToolStatus.INTERRUPTED:
            headline = "The command was interrupted."
        case ToolStatus.NOT_RUN:
            headline = "The command was not run."
    return f"{headline}\n{result.output}"
