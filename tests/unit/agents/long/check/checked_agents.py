"""An agent that passes every case of the suite, and agents that each break one promise.

The library normally prevents what most of the broken agents do, so they replace parts of it.
"""

import asyncio
import subprocess
from collections.abc import Sequence
from typing import Any

from evershell.agents import Task
from evershell.agents.active_task import CancelFlag
from evershell.agents.descendants import Descendants
from evershell.agents.runtime_client import RuntimeClient
from evershell.core.task import TaskEnded

# How long each call takes: long enough for a heartbeat to report the call.
_CALL_SECONDS = 0.4
_commit = RuntimeClient.commit


async def good(task: Task) -> str:
    """Passes every case. The task's description selects what it does, for example what fails."""
    async for step in task.iterations():
        if task.description == "loop error":
            raise ValueError("the loop is broken")
        await step.model_call(_ask(task.description))
        names = ("a", "b") if task.description == "parallel" else ("a",)
        await asyncio.gather(*(step.tool_call(n, {}, _use(task.description)) for n in names))
        if step.number == 2:
            return "done"
    return "so far"


async def endless(task: Task) -> str:
    async for step in task.iterations():
        await step.model_call(_ask(task.description))
        await step.tool_call("a", {}, _use(task.description))
    return "so far"


async def goes_on(task: Task) -> str:
    """Ignores a cancellation and never ends."""
    CancelFlag.request = lambda *_: None  # type: ignore[method-assign]
    return await endless(task)


async def swallows(task: Task) -> str:
    while True:
        try:
            return await good(task)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)


async def ends_twice(task: Task) -> str:
    RuntimeClient.commit = _commit_twice  # type: ignore[method-assign]
    return await good(task)


async def leaves_a_process(task: Task) -> str:
    Descendants.wait_gone = _nothing  # type: ignore[method-assign, assignment]
    subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)  # noqa: ASYNC220
    return await good(task)


async def loses_usage(task: Task) -> str:
    async for step in task.iterations():
        await step.model_call(_ask(task.description))
        await step.tool_call("a", {}, _use(task.description))
        if task.is_cancelled:
            step.reply.input_tokens = step.reply.output_tokens = 0
        if step.number == 2:
            break
    return "done"


async def ignores(task: Task) -> str:
    CancelFlag.request = lambda *_: None  # type: ignore[method-assign]
    return await good(task)


async def _ask(description: str) -> dict[str, Any]:
    await asyncio.sleep(_CALL_SECONDS)
    if description == "model error":
        raise OSError("the model is broken")
    return {"model": "m", "content": "text", "usage": {"input_tokens": 3, "output_tokens": 2}}


async def _use(description: str) -> str:
    if description == "tool error":
        raise KeyError("the tool is broken")
    process = await asyncio.create_subprocess_exec("sleep", str(_CALL_SECONDS))
    await process.wait()
    return "output"


async def _commit_twice(self: RuntimeClient, task_id: str, events: Sequence[Any]) -> bool:
    is_current = await _commit(self, task_id, events)
    if isinstance(events[-1], TaskEnded):
        await _commit(self, task_id, events)
    return is_current


async def _nothing(*_: object) -> None:
    """Does nothing. Replaces a function that kills processes."""
