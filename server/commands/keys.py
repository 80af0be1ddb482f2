"""The commands `keys create`, `keys list` and `keys revoke`: the API keys of an organization,
straight in the database.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

import click
import psycopg

from server import bootstrap
from server.auth.api_keys import fingerprint, new_secret
from server.commands.environment import read_ready, read_settings
from server.core import ids
from server.core.api_key import ApiKey, KeyTemplate
from server.core.errors import Failure, UnavailableError
from server.core.validation import Fields
from server.store.keys import PostgresKeys
from server.terminal import say

MAX_NAME_CHARACTERS = 200
# The slug is a part of the organization's host name.
_SLUG = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

Answer = TypeVar("Answer")


def create(org_id: str, template: KeyTemplate, name: str, new_org_slug: str) -> None:
    """Makes a key; its secret goes to standard output, this once, and all else to standard error."""
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
        id=ids.new_key_id(), org_id=org_id, name=name, template=template, created_at=bootstrap.now()
    )

    async def work(keys: PostgresKeys) -> None:
        if new_org_slug:
            await _create_org(keys, org_id, new_org_slug)
        await _require_org(keys, org_id)
        await keys.create_key(key, fingerprint(secret))

    _with_keys(work)
    say(
        f"Key {key.id} of organization {org_id} with the template {template} is made. It works at once.",
        error=True,
    )
    say("This is the only time that it is shown:", error=True)
    say(secret)


def list_(org_id: str) -> None:
    """Prints the organization's keys, newest first, without their secrets, which nobody has."""

    async def work(keys: PostgresKeys) -> Sequence[ApiKey]:
        await _require_org(keys, org_id)
        return await keys.list_keys(org_id)

    found = _with_keys(work)
    row = "{:<30}  {:<14}  {:<20}  {:<20}  {}"
    say(row.format("ID", "TEMPLATE", "CREATED", "REVOKED", "NAME").rstrip())
    for key in found:
        say(
            row.format(
                key.id, key.template, _time(key.created_at), _time(key.revoked_at), key.name
            ).rstrip()
        )


def revoke(key_id: str) -> None:
    """Ends a key."""

    async def work(keys: PostgresKeys) -> bool:
        return await keys.revoke_key(key_id, bootstrap.now())

    if not _with_keys(work):
        raise click.ClickException(
            f"There is no valid key {key_id}: it is not known, or was revoked before."
        )
    say(f"Key {key_id} is revoked. Within 10 s no replica takes it any more.", error=True)


def _checked(fields: Fields) -> None:
    try:
        fields.check()
    except Failure as failure:
        raise click.UsageError(failure.message) from failure


async def _create_org(keys: PostgresKeys, org_id: str, slug: str) -> None:
    known = await keys.find_org_slug(org_id)
    if known not in (None, slug):
        raise click.ClickException(
            f"Organization {org_id} is there already, and its slug is {known}. Leave --create-org out."
        )
    try:
        await keys.ensure_org(org_id, slug)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


async def _require_org(keys: PostgresKeys, org_id: str) -> None:
    if await keys.find_org_slug(org_id) is None:
        raise click.ClickException(
            f"There is no organization {org_id}. Check the id; `keys create --create-org SLUG` adds one."
        )


def _with_keys(work: Callable[[PostgresKeys], Awaitable[Answer]]) -> Answer:
    """Does the work on the configured database, or that of the stack that runs here."""
    settings = read_settings()
    database_url = settings.database_url or str(
        read_ready(settings.state_dir).get("database_url", "")
    )
    if not database_url:
        raise click.ClickException(
            f"There is no database: no stack runs in {settings.state_dir}. Start one with `make run`, or set DATABASE_URL."
        )

    async def run() -> Answer:
        async with bootstrap.open_keys(database_url) as keys:
            return await work(keys)

    try:
        return asyncio.run(run())
    except UnavailableError as error:
        raise click.ClickException(f"The database does not answer: {error}.") from error
    except psycopg.Error as error:
        # What is wrong with a URL would be told with its password in it.
        problem = str(error) if error.sqlstate else "DATABASE_URL is not a valid URL"
        raise click.ClickException(f"The database cannot be used: {problem}.") from error


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")
