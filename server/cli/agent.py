"""The command `agent`. The fleet controller starts it in a pod."""

import asyncio
import json
import resource
import sys

import click

from server.agent.program import run
from server.agent.shutdown import ExitCode
from server.pod.spec import PodSpec
from server.telemetry import logs


@click.command(help="Run one agent, with a spec as JSON on standard input.", hidden=True)
def agent() -> None:
    """Runs the agent and exits with its exit code."""
    # Lifts the memory limit that is inherited from the controller, because tools may use more
    # memory than a program of the stack.
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        spec = PodSpec(**json.load(sys.stdin))
    except (ValueError, TypeError) as error:
        click.echo(f"The spec on standard input is not valid: {error}.", err=True)
        sys.exit(ExitCode.BAD_SPEC)
    logs.configure("agent", "INFO", workspace_id=spec.workspace_id, epoch=spec.epoch)
    sys.exit(asyncio.run(run(spec)))
