"""An agent of a framework.

The key FRAMEWORK names the framework, and the key HOST names the host of the model endpoint.
"""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from evershell.agents import keys

sys.path.append(str(Path(__file__).parents[5]))

from tests.support.model_server import ModelServer
from tests.unit.agents.long.adapters import frameworks
from tests.unit.agents.long.check.built_in import AGENTS

# How long a tool call takes: long enough for a heartbeat to report the call.
_CALL_SECONDS = "0.4"


class Commands(frameworks.Commands):
    """A tool that takes some time in a separate process."""

    async def shell(self, command: str) -> str:
        """Runs a command."""
        process = await asyncio.create_subprocess_exec("sleep", _CALL_SECONDS)
        await process.wait()
        return await super().shell(command)


cast("Any", frameworks).Commands = Commands
_host = keys["HOST"]
_endpoint = cast("ModelServer", SimpleNamespace(host=_host, base_url=f"http://{_host}/v1"))
agent = AGENTS[keys["FRAMEWORK"]]().agent(_endpoint, Path.cwd())
