"""A program as an agent. Start: evershell up --agent process_agent.py:agent."""

from evershell.agents.adapters import process

agent = process.agent("tr", "a-z", "A-Z")
