"""A fork server of local pods, with a small program instead of the agent."""

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
    """Forks processes that run the text of a program. `before` runs in the fork server first."""
    program = f"AGENT = {agent!r}\n{_SERVER}\n{before}\nfork_server.serve(main)\n"
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    server = ForkServer([_PYTHON, "-P", "-c", program], environment)
    server.start()
    return server


async def end(server: ForkServer) -> None:
    """Ends the process."""
    process = server.process
    server.close()
    if process is not None:
        await processes.wait_exit_and_reap(process.pid)


@asynccontextmanager
async def fork_server(agent: str, before: str = "") -> AsyncIterator[ForkServer]:
    """See `started`."""
    server = started(agent, before)
    try:
        yield server
    finally:
        await end(server)
