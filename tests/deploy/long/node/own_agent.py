"""The agent in the image `own-agent:1`: a graph that calls a tool in a loop.

Each call of the tool waits until the file `gate` exists, and removes the file.
"""

import asyncio
from pathlib import Path

from langchain_core.tools import StructuredTool
from langgraph.graph import START, MessagesState, StateGraph

from evershell.agents.adapters import langgraph


async def wait() -> str:
    """Waits for the gate."""
    gate = Path("gate")
    while not gate.exists():
        await asyncio.sleep(0.1)
    gate.unlink()
    return "opened"


tool = StructuredTool.from_function(coroutine=wait)


async def work(state: MessagesState) -> MessagesState:
    """Calls the tool, without a model."""
    return {"messages": [("ai", await tool.ainvoke({}))]}


builder = StateGraph(MessagesState)
builder.add_node("work", work)
builder.add_edge(START, "work")
builder.add_edge("work", "work")
agent = langgraph.agent(builder.compile())
