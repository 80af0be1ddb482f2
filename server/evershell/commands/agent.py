"""The command `agent check`: checks that a custom agent keeps the contract."""

import asyncio
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import structlog

from evershell.cli.terminal import Commands, say
from evershell.conformance.suite import Options, Suite, Verdict
from evershell.pod.process import become_subreaper

_WIDTH = 40


@click.group(cls=Commands, help="Check an agent of your own.")
def agent() -> None:
    """The commands for authors of agents."""


@agent.command(
    help="""Run the cases of docs/your-agent.md on an agent, and print the result of each.

    AGENT is `my_agent.py:agent` or `my_module:agent`. After `--`, it is the command that starts an
    agent in any language. Exits with 1 if a case fails. A case that the agent does not reach does
    not count as passed; use the options to name tasks that reach it.""",
)
@click.argument("command", metavar="AGENT | -- COMMAND...", nargs=-1, required=True)
@click.option(
    "--task",
    "description",
    default="check",
    show_default=True,
    help="A task with at least two iterations, each with model and tool calls of about 1 s each.",
)
@click.option("--parallel", default="", help="A task whose first iteration calls two tools.")
@click.option("--model-error", default="", help="A task in which the model call raises.")
@click.option("--tool-error", default="", help="A task in which a tool call raises.")
@click.option("--loop-error", default="", help="A task in which the agent's own code raises.")
@click.option(
    "--keys",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON file with the keys of the agent, as AGENT_KEYS_FILE names it.",
)
@click.option(
    "--task-seconds", default=60.0, show_default=True, help="How long each task may take."
)
@click.option(
    "--start-seconds",
    default=120.0,
    show_default=True,
    envvar="POD_START_SECONDS",
    help="How long the agent may take to start. By default, POD_START_SECONDS.",
)
@click.option(
    "--force-seconds",
    default=2.0,
    show_default=True,
    help="How long after its deadline a forced task may end. The control plane allows 2.",
)
def check(command: tuple[str, ...], keys: Path | None, **options: Any) -> None:
    """Runs the cases, and prints a row for each."""
    become_subreaper()
    # Otherwise, log lines of the service would appear between the rows.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    given = Options(keys=_keys(keys), **options)
    with tempfile.TemporaryDirectory(prefix="evershell-check-") as folder:
        has_failed = asyncio.run(_print_rows(Suite(_argv(command), given, Path(folder))))
    if has_failed:
        raise click.exceptions.Exit(1)


async def _print_rows(suite: Suite) -> bool:
    """Prints each row when its case has run. Returns whether a case has failed."""
    counts = dict.fromkeys(Verdict, 0)
    async for row in suite.rows():
        counts[row.verdict] += 1
        say(f"{row.case:<{_WIDTH}}{row.verdict:<13}{row.detail}".rstrip())
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return counts[Verdict.FAILED] > 0


def _argv(command: tuple[str, ...]) -> list[str]:
    """The command that starts the agent."""
    place, _, name = command[0].rpartition(":")
    if len(command) > 1 or not place or not name:
        program = shutil.which(command[0])
        if program is None:
            raise click.BadParameter(
                f"{command[0]!r} is neither FILE.py:NAME, MODULE:NAME nor a program"
            )
        return [str(Path(program).absolute()), *command[1:]]
    path = Path(place if place.endswith(".py") else f"{place}.py").absolute()
    if path.is_file():
        place = str(path)
    elif place.endswith(".py"):
        raise click.BadParameter(f"there is no file {path}")
    return [sys.executable, "-P", "-m", "evershell.agents", f"{place}:{name}"]


def _keys(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise click.BadParameter(
            f"{path} is not a JSON object: {error}", param_hint="--keys"
        ) from error
