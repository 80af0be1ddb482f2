"""The scripted model."""

import pytest

from evershell.agents.model import History, Iteration, ModelFailure, ModelReply, PartialReply
from evershell.agents.program import UnknownModelError, create_model
from evershell.agents.tools import ToolResult, ToolStatus


async def _replies(description: str, *statuses: ToolStatus) -> list[ModelReply]:
    """All replies up to the final one. The first commands end with these statuses, others exit."""
    iterations: list[Iteration] = []
    while not iterations or not iterations[-1].reply.final:
        reply = await create_model("scripted").next(
            History(description, iterations), PartialReply("scripted")
        )
        status = statuses[len(iterations)] if len(iterations) < len(statuses) else ToolStatus.EXITED
        iterations.append(Iteration(reply, ToolResult(status=status)))
    return [iteration.reply for iteration in iterations]


def _commands(replies: list[ModelReply]) -> list[str]:
    return [reply.tool_call.arguments for reply in replies if reply.tool_call is not None]


async def test_each_line_is_a_command_and_the_last_reply_is_final() -> None:
    replies = await _replies(" a \n\n b\n")
    assert _commands(replies) == ['{"command": "a"}', '{"command": "b"}']
    assert [(reply.final, reply.result_after_call) for reply in replies] == [
        (False, ""),
        (True, "Ran 2 commands."),
    ]
    assert len({reply.tool_call.id for reply in replies if reply.tool_call is not None}) == 2
    (only,) = await _replies("a")
    assert only.result_after_call == "Ran 1 command."


async def test_the_result_counts_only_the_commands_that_exited() -> None:
    replies = await _replies("a\nb\nc", ToolStatus.TIMED_OUT)
    assert [reply.content for reply in replies] == ["", "", ""]
    assert replies[-1].result_after_call == "Ran 2 of 3 commands."


async def test_a_fail_line_raises_its_text() -> None:
    with pytest.raises(ModelFailure, match=r"^broke$"):
        await _replies("a\nfail: broke\nb")


async def test_a_blank_script_ends_at_once() -> None:
    (only,) = await _replies(" \n")
    assert only.tool_call is None


def test_the_error_names_an_unknown_model() -> None:
    with pytest.raises(UnknownModelError, match="oracle"):
        create_model("oracle")
