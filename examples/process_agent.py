"""Any program as an agent: it reads the task from standard input, and prints the result."""

from evershell.agents.adapters import process

agent = process.agent("tr", "a-z", "A-Z")
