"""The command `completion`, and the values with which a shell completes arguments."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import click
from click.shell_completion import CompletionItem, get_completion_class

from evershell.cli import profiles
from evershell.cli.names import unique_names, workspace_id
from evershell.cli.service import find_target
from evershell.cli.terminal import printable, say_lines
from evershell.client import Client, EvershellError

_SECONDS = 2.0
_MOST = 50
# Matches names that a shell reads as one word that is not an option. Names are untrusted.
_SAFE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)

_HELP = """Print the script with which a shell completes commands, options, names and ids.

\b
  bash  eval "$(evershell completion bash)"       in ~/.bashrc
  zsh   eval "$(evershell completion zsh)"        in ~/.zshrc
  fish  evershell completion fish | source        in ~/.config/fish/config.fish

Names and ids come from the service, with the credential of the environment, of the
profile or of the local stack.
"""


@click.command(help=_HELP)
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
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
    """The names of workspaces, or their ids where a name cannot be used or an id is typed."""
    return _ask(context, lambda client: _workspaces(client, typed))


def _workspaces(client: Client, typed: str) -> Iterator[tuple[str, str]]:
    listed = list(client.list_workspaces(page_size=200))
    named = {
        name: each for name, each in unique_names(listed).items() if _SAFE_NAME.fullmatch(name)
    }
    for name, each in named.items():
        if name.startswith(typed):
            yield name, f"{each.id} {each.status}"
    for each in listed:
        # Offers the id if the user types it, if several workspaces have the same name, or if a
        # shell would not read the name as one word.
        is_typed = bool(typed) and each.id.startswith(typed)
        if is_typed or (each.name not in named and each.name.startswith(typed)):
            yield each.id, f"{each.status} {each.name}".strip()


def complete_task(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The newest tasks of the workspace, each with its status."""
    # While an option still lacks its value, click leaves the arguments unparsed.
    unread = (argument for argument in context.args if not argument.startswith("-"))
    workspace = context.params.get("workspace") or next(unread, None)
    if not workspace:
        return []
    return _ask(
        context,
        lambda client: (
            (each.id, each.status.value)
            for each in client.list_tasks(workspace_id(client, workspace))
            if each.id.startswith(typed)
        ),
    )


def complete_webhook(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The webhooks, each with its URL."""
    return _ask(
        context,
        lambda client: (
            (each.id, each.url) for each in client.webhooks.list() if each.id.startswith(typed)
        ),
    )


def _ask(
    context: click.Context, list_: Callable[[Client], Iterable[tuple[str, str]]]
) -> list[CompletionItem]:
    """The items that the service lists; none if no service is known or the call fails."""
    url, profile = context.params.get("url") or "", context.params.get("profile") or ""
    try:
        with find_target(url, profile, None, {}).connect(_SECONDS) as client:
            # Escapes newlines, because a newline in a name would begin a new item.
            return [
                CompletionItem(value, help=printable(help_))
                for value, help_ in islice(list_(client.with_options(max_retries=0)), _MOST)
            ]
    except (EvershellError, click.ClickException):
        return []
