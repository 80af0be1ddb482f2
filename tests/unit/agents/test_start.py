"""The process of an agent loads few modules when it starts."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest

from evershell.agents.shutdown import ExitCode
from tests.unit.agents.faulty_plane import ControlPlane

# Runs an agent's program. At its end, prints the names of all loaded modules.
PROGRAM = """
import json, sys
from evershell.agents.__main__ import main
code = main()
print(json.dumps(sorted(sys.modules)))
sys.exit(code)
"""
# An agent may load only these packages in addition to the standard library. `import grpc` imports
# the other grpc packages if they are installed. Cython and setuptools add their own modules.
ALLOWED = {
    "__main__",
    "evershell",
    "grpc",
    "google",
    "typing_extensions",
    "grpc_health",
    "grpc_reflection",
    "grpc_tools",
    "cython_runtime",
    "_cython_3_2_8",
    "_distutils_hack",
}
# The packages and modules directly in `evershell` that an agent may load.
ALLOWED_PACKAGES = {
    "agent",
    "agents",
    "backoff",
    "core",
    "imports",
    "pod",
    "telemetry",
    "version",
    "workspace",
}
# The modules of the core that an agent may load.
ALLOWED_CORE = {
    "evershell.core",
    "evershell.core.credentials",
    "evershell.core.task",
    "evershell.core.trace",
}
# These packages themselves may be loaded, but none of their modules.
HOLLOW = {"grpc_health", "grpc_reflection", "grpc_tools"}


@pytest.fixture
async def agent(
    control_plane: ControlPlane, tmp_path: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process of an agent with the scripted model. It has registered."""
    # So short that there are several heartbeats a second.
    control_plane.lease_length_seconds = 1.5
    await control_plane.serve()
    spec = asdict(control_plane.spec(""))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", PROGRAM),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(spec).encode())
    process.stdin.close()
    await control_plane.reaches(lambda: control_plane.address)
    yield process
    if process.returncode is None:
        process.kill()
    # Also closes the pipes of the process.
    await process.communicate()


async def test_the_scripted_model_needs_few_packages(
    control_plane: ControlPlane, agent: asyncio.subprocess.Process
) -> None:
    await control_plane.run_task("t1", "true\nfalse")
    await control_plane.reaches(lambda: control_plane.end("t1"))
    await control_plane.cancel("t1")
    agent.terminate()
    output, _ = await agent.communicate()
    assert agent.returncode == ExitCode.STOPPED
    modules = json.loads(output)
    assert "evershell.agents.scripted" in modules
    packages = {name.split(".")[0] for name in modules}
    assert packages - ALLOWED <= set(sys.stdlib_module_names)
    assert [name for name in modules if name.partition(".")[0] in HOLLOW] == sorted(
        HOLLOW & packages
    )
    packages = {name.split(".")[1] for name in modules if name.startswith("evershell.")}
    assert packages <= ALLOWED_PACKAGES
    assert {name for name in modules if name.startswith("evershell.core")} <= ALLOWED_CORE
