"""A task's history as chat messages, and a chat completion as a reply: the two directions of the
chat-completions protocol.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from server.agent.completion import Completion, tokens
from server.agent.model import History, Iteration, ModelReply
from server.agent.tools import ShellTool, ToolCall, ToolResult, ToolStatus

_SYSTEM_PROMPT = """\
You carry out a task by running shell commands. Call the tool `shell` with one command at a time; you get its exit code and its \
output, standard output and standard error as one text. Every command starts in the same folder, in a new shell without input, and \
whatever it leaves running is ended with it. When the task is done, or cannot be done, answer without calling a tool: that answer \
is the task's result."""

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

# What the protocol allows in the name of a function.
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_MAX_NAME_CHARACTERS = 64


def messages(history: History) -> list[dict[str, Any]]:
    """The history, for the model: the task, then each call with its result."""
    said: list[dict[str, Any]] = [
        {"role": "system", "content": _SYSTEM_PROMPT},
        {"role": "user", "content": history.description},
    ]
    for iteration in history.iterations:
        said += _said_in(iteration)
    return said


def reply_of(completion: Completion, model: str, position: int) -> ModelReply:
    """The reply. `model` is what was asked for; `position` counts the iterations before it.

    An iteration has one tool call. Endpoints that do not know `parallel_tool_calls` may send
    several: the first is the reply's, and the others never happened. They are not in the history
    either, so that none of them waits there for an answer, and the model makes them again once it
    has seen the first one's result, if it still wants them.
    """
    message = completion.choices[0].message
    call = message.tool_calls[0] if message.tool_calls else None
    tool_call = None
    if call is not None:
        tool_call = ToolCall(
            id=call.id or f"call_{position + 1}",
            name=call.function.name or "",
            arguments=call.function.arguments_text,
        )
    return ModelReply(
        model=completion.model or model,
        content=message.text,
        tool_call=tool_call,
        final=tool_call is None,
        input_tokens=tokens(completion.usage, "prompt_tokens"),
        output_tokens=tokens(completion.usage, "completion_tokens"),
    )


def _said_in(iteration: Iteration) -> list[dict[str, Any]]:
    call, result = iteration.reply.tool_call, iteration.result
    if call is None or result is None:
        return [{"role": "assistant", "content": iteration.reply.content}]
    function = {
        "name": _acceptable_name(call.name),
        "arguments": _acceptable_arguments(call.arguments),
    }
    return [
        {
            "role": "assistant",
            "content": iteration.reply.content or None,
            "tool_calls": [{"id": call.id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call.id, "content": _told(result)},
    ]


def _acceptable_name(name: str) -> str:
    """The name as the endpoint takes it back: it may refuse a whole history for one that its own
    model made up.
    """
    return _NOT_IN_A_NAME.sub("_", name)[:_MAX_NAME_CHARACTERS] or "_"


def _acceptable_arguments(arguments: str) -> str:
    """The arguments as the endpoint takes them back: a JSON object, which is what many of them
    parse the text for.
    """
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    return arguments if is_object else json.dumps({"malformed": arguments})


def _told(result: ToolResult) -> str:
    match result.status:
        case ToolStatus.EXITED:
            headline = f"Exit code {result.exit_code}."
        case ToolStatus.TIMED_OUT:
            headline = "The command was ended at its time limit."
        case ToolStatus.INTERRUPTED:
            headline = "The command was broken off."
        case ToolStatus.NOT_RUN:
            headline = "The command was not run."
    return f"{headline}\n{result.output}"
