"""An agent of the OpenAI Agents SDK. Start: evershell up --agent openai_agents_agent.py:agent."""

from agents import Agent, OpenAIChatCompletionsModel, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

from evershell.agents import keys
from evershell.agents.adapters import openai_agents


@function_tool
async def count_words(text: str) -> int:
    """Counts the words of a text."""
    return len(text.split())


# Otherwise, the SDK sends the conversation to OpenAI as a trace.
set_tracing_disabled(True)
client = AsyncOpenAI(api_key=keys["OPENAI_API_KEY"], base_url=keys.get("OPENAI_BASE_URL"))
model = OpenAIChatCompletionsModel("gpt-5-mini", client)
agent = openai_agents.agent(Agent(name="assistant", model=model, tools=[count_words]))
