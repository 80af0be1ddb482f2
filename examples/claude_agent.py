"""An agent of the Claude Agent SDK. Start: evershell up --agent claude_agent.py:agent."""

from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, create_sdk_mcp_server, tool

from evershell.agents import keys
from evershell.agents.adapters import claude


@tool("count_words", "Counts the words of a text.", {"text": str})
async def count_words(arguments: dict[str, Any]) -> dict[str, Any]:
    """Counts the words of a text."""
    return {"content": [{"type": "text", "text": str(len(arguments["text"].split()))}]}


agent = claude.agent(
    ClaudeAgentOptions(
        mcp_servers={"own": create_sdk_mcp_server("own", tools=[count_words])},
        allowed_tools=["mcp__own__count_words"],
        # The program `claude`, and every tool that it starts, can read all of these keys.
        env={**keys, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"},
    )
)
