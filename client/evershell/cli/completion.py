"""The command `completion`, and the values that a shell completes."""

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from evershell.cli import profiles
from evershell.cli.service import find_target
from evershell.cli.terminal import printable, say_lines
from evershell.client import Client, EvershellError

_SECONDS = 2.0
_MOST = 50

_HELP = """Print the script with which a shell completes commands, options and ids.

\b
  bash  eval "$(evershell completion bash)"       in ~/.bashrc
  zsh   eval "$(evershell completion zsh)"        in ~/.zshrc
  fish  evershell completion fish | source        in ~/.config/fish/config.fish

Ids of workspaces and tasks come from the service, with the credential of the environment, of the
profile or of the local stack.
"""


@click.command(help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints the script."""
    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root()
    say_lines(kind(root.command, {}, "evershell", "_EVERSHELL_COMPLETE").source())


def complete_profile(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The names of the profiles."""
    try:
        names = profiles.read()
    except click.ClickException:
        return []
    return [CompletionItem(name) for name in names if name.startswith(typed)]


def complete_workspace(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The newest workspaces, each with its status and its name."""
    return _ask(
        context,
        typed,
        lambda client: (
            (each.id, f"{each.status} {each.name}".strip()) for each in client.list_workspaces()
        ),
    )


def complete_task(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The newest tasks of the workspace, each with its status."""
    # While an option lacks its value, click leaves the arguments unread.
    unread = (argument for argument in context.args if not argument.startswith("-"))
    workspace = context.params.get("workspace") or next(unread, None)
    if not workspace:
        return []
    return _ask(
        context,
        typed,
        lambda client: ((each.id, each.status.value) for each in client.list_tasks(workspace)),
    )


def complete_webhook(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The webhooks, each with its URL."""
    return _ask(
        context,
        typed,
        lambda client: ((each.id, each.url) for each in client.webhooks.list()),
    )


def _ask(
    context: click.Context, typed: str, list_: Callable[[Client], Iterable[tuple[str, str]]]
) -> list[CompletionItem]:
    """What the service has. Without a service, there is nothing to complete."""
    url, profile = context.params.get("url") or "", context.params.get("profile") or ""
    items: list[CompletionItem] = []
    try:
        with find_target(url, profile, None, {}).connect(_SECONDS) as client:
            for id_, help_ in list_(client.with_options(max_retries=0)):
                if id_.startswith(typed):
                    # A newline in a name would begin another item.
                    items.append(CompletionItem(id_, help=printable(help_)))
                if len(items) == _MOST:
                    break
    except (EvershellError, click.ClickException):
        return []
    return items
