"""The page with the help of every command: docs/commands.md."""

from collections.abc import Iterator

import click

from evershell.cli.main import main

_HEAD = """\
# Help of every command

<!-- Written by `make gen` from client/evershell/cli and server/evershell/commands. Do not edit. -->

What `--help` prints. [The command line](command-line.md) has examples, and
[Errors of the command line](command-line-errors.md) what a command says if it fails.
"""
_COLUMNS = 80


def page() -> str:
    """The text of the page."""
    root = click.Context(main, info_name="evershell", terminal_width=_COLUMNS)
    sections = [
        f"## {path}\n\n```text\n{help_.rstrip()}\n```\n" for path, help_ in _helps(main, root)
    ]
    return "\n".join((_HEAD, *sections))


def _helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yields the path and the help of each command. A group comes before its commands."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                own = click.Context(found, parent=context, info_name=name, terminal_width=_COLUMNS)
                yield from _helps(found, own)
