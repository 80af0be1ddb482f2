"""The commands `orgs create` and `orgs list`. They use the database directly."""

import re
from collections.abc import Sequence

import click

from evershell.cli.terminal import Commands, say
from evershell.commands.key_database import with_keys
from evershell.core import ids
from evershell.store.keys import PostgresKeys

# The slug is a part of the organization's host name.
SLUG = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SLUG_RULE = "must be 1 to 63 characters of a-z 0-9 -, with no - at either end"


@click.group(
    cls=Commands,
    help="Manage organizations, in the database of DATABASE_URL or of the stack that runs on this "
    "machine.",
)
def orgs() -> None:
    """The group of the `orgs` commands."""


@orgs.command(help="Add an organization. Its id is printed to standard output.")
@click.argument("slug")
def create(slug: str) -> None:
    """Fails if an organization already has the slug."""
    if not SLUG.fullmatch(slug):
        raise click.UsageError(f"SLUG {SLUG_RULE}.")
    org_id = ids.new_org_id()

    async def work(stored: PostgresKeys) -> None:
        await add_org(stored, org_id, slug)

    with_keys(work)
    say(f"Created organization {org_id} with the slug {slug}.", error=True)
    say(org_id)


@orgs.command("list", help="List the organizations by slug, with the number of their valid keys.")
def list_() -> None:
    """Prints one line per organization."""

    async def work(stored: PostgresKeys) -> Sequence[tuple[str, str, int]]:
        return await stored.list_orgs()

    row = "{:<30}  {:<30}  {}"
    say(row.format("SLUG", "ID", "KEYS"))
    for org_id, slug, keys in with_keys(work):
        say(row.format(slug, org_id, keys))


async def add_org(stored: PostgresKeys, org_id: str, slug: str) -> None:
    """Adds the organization if it does not exist.

    Raises click.ClickException if the organization has another slug, or another organization has
    this slug.
    """
    known = await stored.find_org_slug(org_id)
    if known not in (None, slug):
        raise click.ClickException(
            f"Organization {org_id} exists already; its slug is {known}. Omit --create-org."
        )
    try:
        await stored.ensure_org(org_id, slug)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
