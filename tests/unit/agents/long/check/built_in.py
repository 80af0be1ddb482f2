"""The built-in agent of this package, with the same model endpoint as the frameworks."""

from pathlib import Path
from typing import Any

from evershell.agents.loop import AgentFunction
from evershell.agents.openai_model import OpenAIModel, openai_agent
from evershell.agents.tools import ShellTool
from tests.unit.agents.long.adapters.frameworks import FRAMEWORKS, Framework


class BuiltIn(Framework):
    package = "openai"

    def agent(self, server: Any, folder: Path) -> AgentFunction:
        model = OpenAIModel("test", base_url=server.base_url, api_key="k", timeout_seconds=30)
        return openai_agent(model, ShellTool(folder.absolute(), "ws_check", 1))


AGENTS = {**FRAMEWORKS, "built in": BuiltIn}
