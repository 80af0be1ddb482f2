"""A fork server for local pods that forks a small program instead of the agent."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from evershell.fleet.local import processes
from evershell.fleet.local.fork_server import ForkServer

_PYTHON = sys.executable
_SERVER = """
import os, random, sys, traceback
from evershell.pod import fork_server, joining
def main():
    code = 1
    try:
        exec(AGENT, {})
        code = 0
    except SystemExit:
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)
"""


def started(agent: str, before: str = "") -> ForkServer:
    """Starts a fork server. Each process that it forks runs the Python code in `agent`.

    The code in `before` runs first, in the fork server itself.
    """
    program = f"AGENT = {agent!r}\n{_SERVER}\n{before}\nfork_server.serve(main)\n"
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    server = ForkServer([_PYTHON, "-P", "-c", program], environment)
    server.start()
    return server


async def end(server: ForkServer) -> None:
    """Ends the fork server."""
    process = server.process
    server.close()
    if process is not None:
        await processes.wait_exit_and_reap(process.pid)


@asynccontextmanager
async def fork_server(agent: str, before: str = "") -> AsyncIterator[ForkServer]:
    """Starts a fork server as `started` does, and ends it after the block."""
    server = started(agent, before)
    try:
        yield server
    finally:
        await end(server)
