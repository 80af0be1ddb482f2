"""The program in a workspace's pod, and the library that it uses.

docs/your-agent.md describes the library. An agent is a function. Its task is a loop of iterations,
and a cancellation ends the loop:

    async def agent(task: Task) -> str:
        async for step in task.iterations():
            reply = await step.model_call(ask_the_model(...))
            output = await step.tool_call("shell", {...}, run_it(...))
        return "the result"

    run(agent)
"""

from evershell.agents.active_task import TaskFailed
from evershell.agents.background import in_process, in_thread
from evershell.agents.children import Child, ChildRefusedError, submit_task
from evershell.agents.entry import run
from evershell.agents.loop import Task
from evershell.agents.own_keys import keys
from evershell.agents.step import CallTimeoutError, Step
from evershell.agents.tools import ToolResult, ToolStatus

__all__ = [
    "CallTimeoutError",
    "Child",
    "ChildRefusedError",
    "Step",
    "Task",
    "TaskFailed",
    "ToolResult",
    "ToolStatus",
    "in_process",
    "in_thread",
    "keys",
    "run",
    "submit_task",
]
