"""The commands `keys create`, `keys list` and `keys revoke`. They use the database directly."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

import click
import psycopg

from server.auth.api_keys import fingerprint, new_secret
from server.bootstrap import open_keys
from server.cli.environment import read_ready, read_settings
from server.core import ids
from server.core.api_key import ApiKey, KeyTemplate
from server.core.errors import Failure, UnavailableError
from server.core.validation import Fields
from server.programs import now
from server.store.keys import PostgresKeys
from server.terminal import Commands, say

MAX_NAME_CHARACTERS = 200
# The slug is a part of the organization's host name.
_SLUG = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

Answer = TypeVar("Answer")


@click.group(
    cls=Commands,
    help="Manage the API keys of organizations, in the database of DATABASE_URL or of the stack "
    "that runs on this machine.",
)
def keys() -> None:
    """Has no options."""


@keys.command(
    help="Create a key. Its secret is printed once, to standard output. All other output goes to "
    "standard error."
)
@click.option(
    "--org",
    "org_id",
    required=True,
    metavar="ORG",
    help="The id of the organization that the key belongs to.",
)
@click.option(
    "--template",
    type=click.Choice([template.value for template in KeyTemplate]),
    required=True,
    metavar="TEMPLATE",
    help="The permissions of the key: full_access, submit_observe or read_only.",
)
@click.option("--name", default="", metavar="NAME", help="A name for people.")
@click.option(
    "--create-org",
    "new_org_slug",
    default="",
    metavar="SLUG",
    help="Add the organization with this slug if it does not exist.",
)
def create(org_id: str, template: str, name: str, new_org_slug: str) -> None:
    """Prints the secret alone to standard output, so that a script can read it."""
    fields = Fields()
    fields.identifier("--org", org_id)
    fields.text("--name", name, max_characters=MAX_NAME_CHARACTERS)
    if new_org_slug and not _SLUG.fullmatch(new_org_slug):
        fields.reject(
            "--create-org", "must be 1 to 63 characters of a-z 0-9 -, with no - at either end"
        )
    _checked(fields)
    secret = new_secret()
    key = ApiKey(
        id=ids.new_key_id(),
        org_id=org_id,
        name=name,
        template=KeyTemplate(template),
        created_at=now(),
    )

    async def work(stored: PostgresKeys) -> None:
        if new_org_slug:
            await _create_org(stored, org_id, new_org_slug)
        await _require_org(stored, org_id)
        await stored.create_key(key, fingerprint(secret))

    _with_keys(work)
    say(
        f"Created key {key.id} of organization {org_id} with the template {template}. "
        "It is valid at once.",
        error=True,
    )
    say("The secret is printed only this once:", error=True)
    say(secret)


@keys.command(
    "list",
    help="List an organization's keys, newest first, including revoked ones, without secrets.",
)
@click.option("--org", "org_id", required=True, metavar="ORG", help="The id of the organization.")
def list_(org_id: str) -> None:
    """Prints one line per key."""

    async def work(stored: PostgresKeys) -> Sequence[ApiKey]:
        await _require_org(stored, org_id)
        return await stored.list_keys(org_id)

    found = _with_keys(work)
    row = "{:<30}  {:<14}  {:<20}  {:<20}  {}"
    say(row.format("ID", "TEMPLATE", "CREATED", "REVOKED", "NAME").rstrip())
    for key in found:
        say(
            row.format(
                key.id, key.template, _time(key.created_at), _time(key.revoked_at), key.name
            ).rstrip()
        )


@keys.command(help="Revoke a key. Within 10 s no worker accepts it any more.")
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Fails if there is no valid key with this id."""

    async def work(stored: PostgresKeys) -> bool:
        return await stored.revoke_key(key_id, now())

    if not _with_keys(work):
        raise click.ClickException(
            f"There is no valid key {key_id}: it does not exist, or is revoked already."
        )
    say(f"Key {key_id} is revoked. Within 10 s no worker accepts it any more.", error=True)


def _checked(fields: Fields) -> None:
    try:
        fields.check()
    except Failure as failure:
        raise click.UsageError(failure.message) from failure


async def _create_org(stored: PostgresKeys, org_id: str, slug: str) -> None:
    known = await stored.find_org_slug(org_id)
    if known not in (None, slug):
        raise click.ClickException(
            f"Organization {org_id} exists already; its slug is {known}. Omit --create-org."
        )
    try:
        await stored.ensure_org(org_id, slug)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


async def _require_org(stored: PostgresKeys, org_id: str) -> None:
    if await stored.find_org_slug(org_id) is None:
        raise click.ClickException(
            f"There is no organization {org_id}. Check the id; "
            "`keys create --create-org SLUG` adds one."
        )


def _with_keys(work: Callable[[PostgresKeys], Awaitable[Answer]]) -> Answer:
    """Runs `work` on the database of DATABASE_URL or of the stack that runs on this machine.

    Raises click.ClickException.
    """
    settings = read_settings()
    database_url = settings.database_url
    if not database_url and (ready := read_ready(settings.state_dir)):
        database_url = ready.database_url
    if not database_url:
        raise click.ClickException(
            f"There is no database: no stack runs in {settings.state_dir}. "
            "Start one with `make run`, or set DATABASE_URL."
        )

    async def run() -> Answer:
        async with open_keys(database_url) as stored:
            return await work(stored)

    try:
        return asyncio.run(run())
    except UnavailableError as error:
        raise click.ClickException(f"The database does not answer: {error}.") from error
    except psycopg.Error as error:
        # The error about an invalid URL would contain its password.
        problem = str(error) if error.sqlstate else "DATABASE_URL is not a valid URL"
        raise click.ClickException(f"The database cannot be used: {problem}.") from error


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")
