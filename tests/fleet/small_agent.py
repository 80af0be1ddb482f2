"""A small program in the place of the agent, for tests of pods."""

import asyncio
import json
import sys
from pathlib import Path

from server.core.runtime import AgentIdentity
from server.core.workspace import Workspace
from server.pod.spec import PodSpec

# Writes down what it was given, says so, and waits.
AGENT = f"""#!{sys.executable} -S
import json, os, sys, time
given = dict(argv=sys.argv[1:], stdin=sys.stdin.read(), environment=dict(os.environ), cwd=os.getcwd())
open("given.tmp", "w").write(json.dumps(given))
os.rename("given.tmp", "given.json")
print("first line", flush=True)
print("last words", file=sys.stderr, flush=True)
time.sleep(60)
"""


def spec_for(agent: AgentIdentity) -> PodSpec:
    return PodSpec(
        workspace_id=agent.workspace_id,
        epoch=agent.epoch,
        runtime_addresses=["127.0.0.1:1"],
        runtime_token="a secret token",
        control_plane_public_key="{}",
        model="scripted",
        model_timeout_seconds=1,
        tool_timeout_seconds=1,
        openai_base_url="",
        openai_api_key="",
    )


async def given(tmp_path: Path, at: Workspace) -> dict[str, object]:
    """What the program says that it was given."""
    told = tmp_path / "pods" / at.id / "files" / "given.json"
    async with asyncio.timeout(10):
        while not told.exists():
            await asyncio.sleep(0.005)
    found: dict[str, object] = json.loads(told.read_text())
    return found
