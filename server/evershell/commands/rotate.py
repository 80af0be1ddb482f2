"""The commands `rotate begin` and `rotate finish`. They change a file and need no running stack."""

from collections.abc import Callable

import click

from evershell.auth.signing_keys import (
    private_keys,
    read_signing_keys,
    with_first_key,
    with_new_key,
)
from evershell.cli.folder_lock import folder_lock
from evershell.cli.terminal import Commands, say
from evershell.commands.environment import problems_reported, read_settings
from evershell.stack.ready import write_private


@click.group(
    cls=Commands,
    help="Replace the signing key of the control plane, from which the secrets and certificates of "
    "agents are derived. The file is control-plane.jwk in STATE_DIR.",
)
def rotate() -> None:
    """The group of the `rotate` commands."""


@rotate.command(
    help="Add a new key before the current one. Then restart the workers, and after them the "
    "controllers. Agents that start afterwards use the new key, and the others keep theirs."
)
def begin() -> None:
    """Fails if a rotation is in progress."""
    _change(
        with_new_key,
        in_rotation=False,
        refusal="A rotation is in progress. Finish it first.",
        done="The new signing key is the first one.",
    )


@rotate.command(
    help="Remove the previous key, once every agent that was started with it has ended. Then "
    "restart the workers and the controllers. Agents that still have it end, and their tasks fail."
)
def finish() -> None:
    """Fails if no rotation is in progress."""
    _change(
        with_first_key,
        in_rotation=True,
        refusal="No rotation is in progress. Begin one first.",
        done="The previous signing key is removed. Agents that still have it end after the "
        "restart, and their tasks fail.",
    )


def _change(change: Callable[[str], str], *, in_rotation: bool, refusal: str, done: str) -> None:
    """Changes the key file. `in_rotation` says whether a rotation must or must not be in progress.

    Raises click.ClickException if this condition is not met.
    """
    path = read_settings().signing_key_path
    try:
        with problems_reported(), folder_lock(path.parent):
            text = read_signing_keys(path)
            if (len(private_keys(text)) > 1) != in_rotation:
                raise click.ClickException(f"{refusal} {path} was not changed.")
            write_private(path, change(text))
    except OSError as error:
        raise click.ClickException(f"{path} cannot be changed: {error.strerror}.") from error
    say(f"{done} Restart the workers, then the controllers: `evershell restart` on one machine.")
