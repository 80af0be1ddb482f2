"""The names of workspaces. Commands accept a name instead of the id of a workspace."""

from collections.abc import Iterable
from difflib import get_close_matches

from evershell.cli import show
from evershell.client import Client, ValidationError, Workspace, WorkspaceNotFoundError

_ID_PREFIX = "ws_"
# If several workspaces have the same name, the error lists at most this many of them.
_MOST_LISTED = 10


def workspace_id(client: Client, named: str) -> str:
    """The id of the workspace with this id or name. A word that begins with `ws_` is an id.

    For a name, reads the list of all workspaces. Raises WorkspaceNotFoundError if no workspace has
    the name, ValidationError if several have it, and CallError if the list cannot be read.
    """
    # An empty text counts as an id. As a name, it would match all workspaces without a name.
    if not named or named.startswith(_ID_PREFIX):
        return named
    listed = list(client.list_workspaces(page_size=200))
    found = [each for each in listed if each.name == named]
    if not found:
        similar = get_close_matches(named, {each.name for each in listed})
        suggestion = f"Did you mean {' or '.join(similar)}? " if similar else ""
        raise WorkspaceNotFoundError(
            f"No workspace has the name {named}. {suggestion}`evershell workspaces` lists the "
            "names. Check whose credential you use.",
            is_from_service=False,
        )
    if len(found) > 1:
        raise ValidationError(
            f"{len(found)} workspaces have the name {named}. Use the id of one: {_listed(found)}.",
            details={"workspace_ids": [each.id for each in found]},
            is_from_service=False,
        )
    return found[0].id


def _listed(workspaces: list[Workspace]) -> str:
    shown = ", ".join(
        f"{each.id} ({each.status}, created {show.time(each.created_at)})"
        for each in workspaces[:_MOST_LISTED]
    )
    more = len(workspaces) - _MOST_LISTED
    return f"{shown}, and {more} more" if more > 0 else shown


def unique_names(workspaces: Iterable[Workspace]) -> dict[str, Workspace]:
    """Maps names to workspaces. Leaves out shared names, and names that look like ids."""
    found: dict[str, list[Workspace]] = {}
    for each in workspaces:
        found.setdefault(each.name, []).append(each)
    return {
        name: shared[0]
        for name, shared in found.items()
        if name and len(shared) == 1 and not name.startswith(_ID_PREFIX)
    }
