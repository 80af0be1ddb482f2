"""The messages of a chat in which a model calls the tool `shell`."""

import json
import re
from collections.abc import Sequence
from typing import Any

from evershell.agents.completion import Message
from evershell.agents.tools import ShellTool, ToolCall, ToolResult, ToolStatus

_SYSTEM_PROMPT = """\
You carry out a task by running shell commands. Call the tool `shell` with one command; you get \
its exit code and its output, standard output and standard error as one text. Several calls in one \
answer run one after the other. Every command starts in the same folder, in a new shell without \
input. All processes that it leaves running are killed when it exits. When the task is done, or \
cannot be done, answer without calling a tool: that answer is the task's result."""

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


def calls_of(message: Message, number: int) -> list[ToolCall]:
    """The tool calls that the message asks for. `number` is the number of the iteration.

    Each call gets its own id, because some endpoints send no ids, or the same id for all calls.
    """
    calls: dict[str, ToolCall] = {}
    for position, call in enumerate(message.tool_calls or [], 1):
        own_id = f"call_{number}" if position == 1 else f"call_{number}_{position}"
        call_id = own_id if not call.id or call.id in calls else call.id
        calls[call_id] = ToolCall(
            id=call_id,
            name=call.function.name or "",
            arguments=call.function.arguments_text,
        )
    return list(calls.values())


def exchange(
    content: str, calls: Sequence[ToolCall], results: Sequence[ToolResult]
) -> list[dict[str, Any]]:
    """The model's message with tool calls, and a message with the result of each."""
    asked = [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": _acceptable_name(call.name),
                "arguments": _acceptable_arguments(call.arguments),
            },
        }
        for call in calls
    ]
    return [
        {"role": "assistant", "content": content or None, "tool_calls": asked},
        *(
            {"role": "tool", "tool_call_id": call.id, "content": _result_text(result)}
            for call, result in zip(calls, results, strict=True)
        ),
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
