"""An agent of Pydantic AI. Start: evershell up --agent pydantic_ai_agent.py:agent."""

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from evershell.agents import keys
from evershell.agents.adapters import pydantic_ai


async def count_words(text: str) -> int:
    """Counts the words of a text."""
    return len(text.split())


provider = OpenAIProvider(api_key=keys["OPENAI_API_KEY"], base_url=keys.get("OPENAI_BASE_URL"))
agent = pydantic_ai.agent(
    Agent(OpenAIChatModel("gpt-5-mini", provider=provider), tools=[count_words])
)
