"""The command `get`, with a subcommand for each method of the client that reads one object."""

import inspect
from collections.abc import Callable
from typing import Any

import click

from evershell.cli import show
from evershell.cli.completion import complete_task, complete_workspace
from evershell.cli.options import Call, service_options
from evershell.client import Client

_PREFIX = "get_"
_COMPLETIONS = {"workspace_id": complete_workspace, "task_id": complete_task}


@click.group(help="Print one object from the service as JSON.")
def get() -> None:
    """The group of the commands that are generated from methods of the client."""


def summary(method: Callable[..., Any]) -> str:
    """The first paragraph of a method's docstring, in one line."""
    return " ".join((inspect.getdoc(method) or "").partition("\n\n")[0].split())


def flags(method: Callable[..., Any], command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each boolean argument of a method."""
    for name, parameter in reversed(list(inspect.signature(method).parameters.items())):
        if parameter.annotation is bool:
            option = f"--{name.replace('_', '-')}"
            command = click.option(option, name, is_flag=True, help=text_of(method, name))(command)
    return command


def text_of(method: Callable[..., Any], argument: str) -> str:
    """What the docstring of a method says about an argument."""
    lines = (inspect.getdoc(method) or "").partition("\nArgs:\n")[2].splitlines()
    begins = (at for at, line in enumerate(lines) if line.startswith(f"    {argument}: "))
    if (begin := next(begins, None)) is None:
        # With -OO, Python removes docstrings.
        return ""
    found = [lines[begin].partition(": ")[2]]
    for line in lines[begin + 1 :]:
        if not line.startswith(" " * 8):
            break
        found.append(line.strip())
    return " ".join(found)


def _command(name: str, method: Callable[..., Any]) -> click.Command:
    def print_answer(call: Call, **arguments: Any) -> None:
        if "workspace" in arguments:
            arguments["workspace_id"] = arguments.pop("workspace")
        show.json_value(getattr(call.client, name)(**arguments).to_dict())

    command = flags(method, service_options(print_answer))
    for each in reversed(list(inspect.signature(method).parameters.values())):
        if each.kind is each.POSITIONAL_OR_KEYWORD and each.name != "self":
            # On the command line, a workspace can also be given by its name.
            declared = "workspace" if each.name == "workspace_id" else each.name
            complete = _COMPLETIONS.get(each.name)
            metavar = declared.removesuffix("_id").upper()
            command = click.argument(declared, metavar=metavar, shell_complete=complete)(command)
    title = name.removeprefix(_PREFIX).replace("_", "-")
    return click.command(title, help=summary(method))(command)


for _name, _method in inspect.getmembers(Client, inspect.isfunction):
    if _name.startswith(_PREFIX):
        get.add_command(_command(_name, _method))
