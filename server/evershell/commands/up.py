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
    settings, agent_file = read_settings(), None
    if agent is not None:
        agent, agent_file = _found(agent)
        command = shlex.join([sys.executable, "-P", "-m", "evershell.agents", agent])
        settings = settings.model_copy(update={"agent_command": command})
    logs.configure("up", settings.log_level)
    with problems_reported():
        asyncio.run(run(settings, agent_file))


def _found(agent: str) -> tuple[str, Path | None]:
    """The agent `file.py:name` with an absolute path, and its file; or the agent `module:name`."""
    place, _, name = agent.rpartition(":")
    if not place or not name:
        raise click.BadParameter("must be FILE.py:NAME or MODULE:NAME", param_hint="--agent")
    if not place.endswith(".py"):
        return agent, None
    path = Path(place).absolute()
    if not path.is_file():
        raise click.BadParameter(f"there is no file {path}", param_hint="--agent")
    return f"{path}:{name}", path
