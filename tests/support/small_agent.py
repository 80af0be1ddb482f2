"""A small program that stands in for the agent in tests of pods."""

import asyncio
import json
import sys
from pathlib import Path

from evershell.core.runtime import AgentIdentity
from evershell.core.workspace import Workspace
from evershell.pod.spec import PodSpec

# The program writes its arguments, input, environment and working directory to received.json,
# prints two lines, and waits.
AGENT = f"""#!{sys.executable} -S
import json, os, sys, time
received = dict(argv=sys.argv[1:], stdin=sys.stdin.read(), environment=dict(os.environ))
received["cwd"] = os.getcwd()
open("received.tmp", "w").write(json.dumps(received))
os.rename("received.tmp", "received.json")
print("first line", flush=True)
print("last line", file=sys.stderr, flush=True)
time.sleep(60)
"""


def spec_for(agent: AgentIdentity) -> PodSpec:
    return PodSpec(
        workspace_id=agent.workspace_id,
        epoch=agent.epoch,
        runtime_addresses=["127.0.0.1:1"],
        runtime_secret="a secret",
        signal_secret="another secret",
        model="scripted",
        model_timeout_seconds=1,
        tool_timeout_seconds=1,
        openai_base_url="",
        openai_api_key="",
    )


async def wait_start(tmp_path: Path, workspace: Workspace) -> dict[str, object]:
    """Waits until the program has started. Returns what it has received."""
    path = tmp_path / "pods" / workspace.id / "files" / "received.json"
    async with asyncio.timeout(10):
        while not path.exists():
            await asyncio.sleep(0.005)
    found: dict[str, object] = json.loads(path.read_text())
    return found
