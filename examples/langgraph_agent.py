"""A graph of LangGraph. Start: evershell up --agent langgraph_agent.py:agent."""

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from evershell.agents import keys
from evershell.agents.adapters import langgraph


@tool
async def count_words(text: str) -> int:
    """Counts the words of a text."""
    return len(text.split())


# With `streaming`, an interrupted reply is kept as far as it was received.
model = ChatOpenAI(
    model="gpt-5-mini",
    api_key=keys["OPENAI_API_KEY"],
    base_url=keys.get("OPENAI_BASE_URL"),
    streaming=True,
    stream_usage=True,
).bind_tools([count_words])


async def ask(state: MessagesState) -> MessagesState:
    """Asks the model."""
    return {"messages": [await model.ainvoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node("ask", ask)
builder.add_node("tools", ToolNode([count_words]))
builder.add_edge(START, "ask")
builder.add_conditional_edges("ask", tools_condition)
builder.add_edge("tools", "ask")
agent = langgraph.agent(builder.compile())
