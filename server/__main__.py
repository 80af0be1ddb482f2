"""The commands. Each imports what it needs when it runs: an agent, of which there are many, is not to carry the control plane."""

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from server.config import Settings


@click.group(help="The cancel button of an agent platform.")
def main() -> None:
    """The commands' root."""


@main.command(help="Start everything on this machine, in the foreground.")
def up() -> None:
    """See server.stack.up."""
    from server.bootstrap import configure_log
    from server.stack.up import CannotStartError
    from server.stack.up import up as run

    settings = _settings()
    configure_log("up", settings.log_level)
    try:
        asyncio.run(run(settings))
    except CannotStartError as error:
        raise click.ClickException(str(error)) from error


@main.command(help="Run one control-plane worker.")
@click.option("--port", type=int, help="The port it listens on; SERVER_PORT when absent.")
def serve(port: int | None) -> None:
    """See server.bootstrap.serve."""
    import uvloop

    from server import bootstrap

    settings = _settings()
    bootstrap.configure_log("serve", settings.log_level)
    uvloop.run(bootstrap.serve(settings, port or settings.server_port))


@main.command(help="Run one fleet controller, which leads or stands by.")
def fleet() -> None:
    """See server.bootstrap.fleet."""
    from server import bootstrap

    settings = _settings()
    bootstrap.configure_log("fleet", settings.log_level)
    asyncio.run(bootstrap.fleet(settings))


@main.command(help="Run one agent; what it is to know comes as JSON on standard input.", hidden=True)
def agent() -> None:
    """See server.agent.program."""
    from server.agent.program import AgentSettings, run_agent

    spec = json.load(sys.stdin)
    sys.exit(asyncio.run(run_agent(AgentSettings(**{**spec, "files_dir": Path(spec["files_dir"])}))))


def _settings() -> "Settings":
    from pydantic import ValidationError

    from server.config import Settings

    try:
        return Settings.read()
    except ValidationError as error:
        problems = "; ".join(f"{str(problem['loc'][0]).upper()}: {problem['msg']}" for problem in error.errors())
        raise click.ClickException(f"The environment is not valid. {problems}") from error


if __name__ == "__main__":
    main()
