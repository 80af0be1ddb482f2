"""The command `up`."""

import asyncio
import shlex
import sys
from pathlib import Path

import click

from evershell.commands.environment import problems_reported, read_settings
from evershell.stack.up import up as run
from evershell.telemetry import logs


@click.command(help="Start the whole stack on this machine, in the foreground.")
@click.option(
    "--agent",
    metavar="FILE.py:NAME",
    help="Your own agent, instead of AGENT_COMMAND: a function in a file or in a module.",
)
def up(agent: str | None) -> None:
    """Runs until Ctrl-C."""
    settings = read_settings()
    if agent is not None:
        settings = settings.model_copy(update={"agent_command": _command_of(agent)})
    logs.configure("up", settings.log_level)
    with problems_reported():
        asyncio.run(run(settings))


def _command_of(agent: str) -> str:
    """The AGENT_COMMAND for the agent `file.py:name` or `module:name`."""
    place, _, name = agent.rpartition(":")
    if not place or not name:
        raise click.BadParameter("must be FILE.py:NAME or MODULE:NAME", param_hint="--agent")
    if place.endswith(".py"):
        path = Path(place).absolute()
        if not path.is_file():
            raise click.BadParameter(f"there is no file {path}", param_hint="--agent")
        agent = f"{path}:{name}"
    return shlex.join([sys.executable, "-P", "-m", "evershell.agents", agent])
