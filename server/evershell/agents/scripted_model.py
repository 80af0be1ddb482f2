"""`scripted`: a model that needs no network and always does the same."""

import json

from evershell.agents.model import History, Iteration, ModelFailure, ModelReply, PartialReply
from evershell.agents.tools import ToolCall, ToolStatus


class ScriptedModel:
    """Runs each non-blank line of the description as a shell command, one per iteration.

    The reply of the last line is final, so N lines make N iterations. A line `fail: text` raises
    ModelFailure with that text.
    """

    name = "scripted"

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        """A call of the shell with the next line."""
        lines = [line.strip() for line in history.description.splitlines() if line.strip()]
        position = len(history.iterations)
        if position >= len(lines):
            return ModelReply(model=self.name, content="There was no command to run.", final=True)
        line = lines[position]
        if line.startswith("fail:"):
            raise ModelFailure(line.removeprefix("fail:").strip())
        is_last = position == len(lines) - 1
        exited = sum(_has_exited(iteration) for iteration in history.iterations)
        return ModelReply(
            model=self.name,
            result_after_call=_summary(exited + 1, len(lines)) if is_last else "",
            tool_call=ToolCall(
                id=f"call_{position + 1}", name="shell", arguments=json.dumps({"command": line})
            ),
            final=is_last,
        )


def _has_exited(iteration: Iteration) -> bool:
    return iteration.result is not None and iteration.result.status is ToolStatus.EXITED


def _summary(exited: int, commands: int) -> str:
    of_all = "" if exited == commands else f" of {commands}"
    return f"Ran {exited}{of_all} command{'' if commands == 1 else 's'}."
