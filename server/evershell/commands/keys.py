"""The commands `keys create`, `keys list` and `keys revoke`. They use the database directly."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import click
import psycopg

from evershell.auth.api_keys import fingerprint, new_secret
from evershell.cli.terminal import Commands, say
from evershell.cli.values import DURATION
from evershell.commands.key_database import with_keys
from evershell.commands.orgs import SLUG, SLUG_RULE, add_org
from evershell.core import ids
from evershell.core.caller import ApiKey, KeyTemplate
from evershell.core.errors import Failure, UnavailableError
from evershell.core.validation import Fields
from evershell.store.keys import PostgresKeys

MAX_NAME_CHARACTERS = 200
# The value of --org that asks for a new organization.
_NEW = "new"
_MAX_EXPIRY_SECONDS = 100 * 365 * 86_400


@click.group(
    cls=Commands,
    help="Manage the API keys of organizations, in the database of DATABASE_URL or of the stack "
    "that runs on this machine.",
)
def keys() -> None:
    """The group of the `keys` commands."""


@keys.command(
    help="Create a key. Its secret is printed once, to standard output. All other output goes to "
    "standard error."
)
@click.option(
    "--org",
    "org_id",
    required=True,
    metavar="ORG",
    help="The id of the organization that the key belongs to; new for a new organization.",
)
@click.option(
    "--template",
    type=click.Choice([template.value for template in KeyTemplate]),
    required=True,
    metavar="TEMPLATE",
    help="The permissions of the key: full_access, submit_observe or read_only.",
)
@click.option("--name", default="", metavar="NAME", help="A human-readable name.")
@click.option(
    "--expires-in",
    "expires_in_seconds",
    type=DURATION,
    metavar="DURATION",
    help="Refuse the key after this time: 12h, 30d. Default: it does not expire.",
)
@click.option(
    "--create-org",
    "new_org_slug",
    default="",
    metavar="SLUG",
    help="Add the organization with this slug if it does not exist.",
)
def create(
    org_id: str, template: str, name: str, expires_in_seconds: float | None, new_org_slug: str
) -> None:
    """Prints only the secret to standard output, so that a script can read it.

    If the secret cannot be printed, no key is created.
    """
    fields = Fields()
    fields.identifier("--org", org_id)
    fields.text("--name", name, max_characters=MAX_NAME_CHARACTERS)
    if new_org_slug and not SLUG.fullmatch(new_org_slug):
        fields.reject("--create-org", SLUG_RULE)
    if org_id == _NEW and not new_org_slug:
        fields.reject("--create-org", "is required with --org new: the host name contains the slug")
    if expires_in_seconds is not None and not 0 < expires_in_seconds <= _MAX_EXPIRY_SECONDS:
        fields.reject("--expires-in", "must be more than 0 s and at most 100 years")
    _checked(fields)
    secret = new_secret()

    async def work(stored: PostgresKeys) -> ApiKey:
        created_at = await stored.now()
        key = ApiKey(
            id=ids.new_key_id(),
            org_id=ids.new_org_id() if org_id == _NEW else org_id,
            name=name,
            template=KeyTemplate(template),
            created_at=created_at,
            expires_at=None
            if expires_in_seconds is None
            else created_at + timedelta(seconds=expires_in_seconds),
        )
        if new_org_slug:
            await add_org(stored, key.org_id, new_org_slug)
        await _require_org(stored, key.org_id)
        # Printed first, because a failure must not leave a valid key whose secret nobody has.
        say("The secret is printed only this once:", error=True)
        say(secret)
        try:
            await stored.create_key(key, fingerprint(secret))
        except (UnavailableError, psycopg.Error):
            say(f"The secret is not valid, unless `keys list` shows key {key.id}.", error=True)
            raise
        return key

    key = with_keys(work)
    until = "" if key.expires_at is None else f", until {_time(key.expires_at)}"
    say(
        f"Created key {key.id} of organization {key.org_id} with the template {template}. "
        f"It is valid at once{until}.",
        error=True,
    )


@keys.command(
    "list",
    help="List an organization's keys, newest first, including revoked and expired ones, without "
    "secrets. LAST USED is accurate to about a minute.",
)
@click.option("--org", "org_id", required=True, metavar="ORG", help="The id of the organization.")
def list_(org_id: str) -> None:
    """Prints one line per key."""

    async def work(stored: PostgresKeys) -> Sequence[ApiKey]:
        await _require_org(stored, org_id)
        return await stored.list_keys(org_id)

    api_keys = with_keys(work)
    row = "{:<30}  {:<14}  {:<20}  {:<20}  {:<20}  {:<20}  {}"
    say(row.format("ID", "TEMPLATE", "CREATED", "EXPIRES", "REVOKED", "LAST USED", "NAME").rstrip())
    for key in api_keys:
        times = (key.created_at, key.expires_at, key.revoked_at, key.last_used_at)
        say(row.format(key.id, key.template, *map(_time, times), key.name).rstrip())


@keys.command(help="Revoke a key. Within 10 s no worker accepts it any more.")
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Fails if there is no valid key with this id."""

    async def work(stored: PostgresKeys) -> bool:
        return await stored.revoke_key(key_id, await stored.now())

    if not with_keys(work):
        raise click.ClickException(
            f"There is no valid key {key_id}: it does not exist, or is revoked already."
        )
    say(f"Key {key_id} is revoked. Within 10 s no worker accepts it any more.", error=True)


def _checked(fields: Fields) -> None:
    try:
        fields.check()
    except Failure as failure:
        raise click.UsageError(failure.message) from failure


async def _require_org(stored: PostgresKeys, org_id: str) -> None:
    if await stored.find_org_slug(org_id) is None:
        raise click.ClickException(
            f"There is no organization {org_id}. Check the id; "
            "`keys create --create-org SLUG` adds one."
        )


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")
