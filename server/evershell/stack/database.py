"""Prepares the database before the programs of the stack start: migrations and the demo."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from joserfc import jwt
from joserfc.jwk import ECKey

from evershell.app.settings import Settings
from evershell.auth.api_keys import fingerprint, new_secret
from evershell.core import ids, workspace_lifecycle
from evershell.core.caller import ApiKey, KeyTemplate
from evershell.core.ports import Clock, Store
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.stack.ready import Demo, write_private
from evershell.store.audit import prune
from evershell.store.connections import connect_for_command
from evershell.store.keys import PostgresKeys
from evershell.store.migrate import migrate
from evershell.store.service_clock import time_of
from evershell.store.session_settings import store_as_defaults

ORG_ID = "org_demo"
_SLUG = "demo"
OTHER_ORG_ID = "org_other"
OWNER = "user_owner"
MEMBER = "user_member"
_OTHER_OWNER = "user_other"
_ALL_SCOPES = [
    "workspace:read",
    "workspace:write",
    "tasks:write",
    "audit:read",
    "org:hold",
    "webhooks:write",
]
_OWN_SCOPES = ["workspace:read:own", "workspace:write:own", "tasks:write:own"]
_SESSION_SECONDS = 7 * 24 * 3600
_KID = "demo"


def prepare_database(settings: Settings) -> None:
    """Migrates the database, and removes audit entries that are older than the retention. Blocks.

    If a pooler is used, also stores the settings of its sessions.

    Raises what migrate raises, and psycopg.Error.
    """
    migrate(settings.owner_url, settings.session_url)
    if settings.database_session_url:
        store_as_defaults(settings.database_session_url)
    if settings.audit_retention_days:
        # A role that may only use the tables cannot prune. In this case, the command `migrate`
        # prunes, with another role.
        with (
            suppress(psycopg.errors.InsufficientPrivilege),
            connect_for_command(settings.owner_url) as connection,
        ):
            prune(connection, time_of(connection) - timedelta(days=settings.audit_retention_days))


async def seed(
    settings: Settings,
    store: Store,
    keys: PostgresKeys,
    clock: Clock,
    utc_seconds: Callable[[], float] = time.time,
) -> Demo:
    """Creates the missing parts of the demo organization, and returns it.

    Its credentials are in the database and in files of the state folder.
    """
    await keys.ensure_org(ORG_ID, _SLUG)
    await keys.ensure_org(OTHER_ORG_ID, "other")
    kept = _KeptValues(settings.state_dir / "demo.json")
    tokens = {
        template.value: await _api_key(template, kept, keys, clock) for template in KeyTemplate
    }
    tokens |= _session_tokens(settings, kept, int(utc_seconds()))
    workspace_id = await _workspace(kept, store, clock)
    host = f"{_SLUG}.{settings.public_domain}" if settings.public_domain else ""
    return Demo(org_id=ORG_ID, host=host, workspace_id=workspace_id, tokens=tokens)


class _KeptValues:
    """The values that the next run needs, in a JSON file that only its owner can read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def set(self, name: str, value: Any) -> Any:
        self._values[name] = value
        write_private(self._path, json.dumps(self._values))
        return value


async def _api_key(
    template: KeyTemplate, kept: _KeptValues, keys: PostgresKeys, clock: Clock
) -> str:
    name = f"key {template}"
    secret: str = kept.get(name) or kept.set(name, new_secret())
    if await keys.find_key(fingerprint(secret)) is None:
        key = ApiKey(
            id=ids.new_key_id(),
            org_id=ORG_ID,
            name=f"demo {template}",
            template=template,
            created_at=clock(),
        )
        await keys.create_key(key, fingerprint(secret))
    return secret


def _session_tokens(settings: Settings, kept: _KeptValues, now: int) -> dict[str, str]:
    """Session tokens by name. All but `expired` are valid at `now`, in seconds since 1970.

    They are signed with a key of the stack. By default, the control plane reads the public key from
    the JWK set that is written here.
    """
    private = kept.get("session key") or kept.set(
        "session key", ECKey.generate_key("P-256").as_dict(private=True)
    )
    key = ECKey.import_key(private)
    jwks = {"keys": [{**key.as_dict(private=False), "kid": _KID, "alg": "ES256", "use": "sig"}]}
    write_private(settings.state_dir / "demo-jwks.json", json.dumps(jwks))

    def token(user_id: str, org_id: str, scopes: list[str], expires_at: int) -> str:
        claims = {
            "iss": settings.jwt_issuer,
            "aud": settings.jwt_audience,
            "sub": user_id,
            "org_id": org_id,
            "permissions": scopes,
            "nbf": min(now, expires_at) - 60,
            "exp": expires_at,
        }
        return jwt.encode({"alg": "ES256", "kid": _KID}, claims, key, algorithms=["ES256"])

    return {
        "owner": token(OWNER, ORG_ID, _ALL_SCOPES, now + _SESSION_SECONDS),
        "member": token(MEMBER, ORG_ID, _OWN_SCOPES, now + _SESSION_SECONDS),
        "expired": token(OWNER, ORG_ID, _ALL_SCOPES, now - 3600),
        "other_org": token(_OTHER_OWNER, OTHER_ORG_ID, _ALL_SCOPES, now + _SESSION_SECONDS),
    }


async def _workspace(kept: _KeptValues, store: Store, clock: Clock) -> str:
    """Creates or resumes the demo workspace, so that it becomes idle, and returns its id."""
    workspace_id: str | None = kept.get("workspace id")
    if workspace_id is None or await _is_deleted(workspace_id, store):
        workspace_id = str(kept.set("workspace id", ids.new_workspace_id(clock())))
    workspace = await store.get_workspace(workspace_id)
    if workspace is None:
        now = clock()
        await store.create_workspace(
            Workspace(
                id=workspace_id,
                org_id=ORG_ID,
                name="demo",
                status=WorkspaceStatus.PROVISIONING,
                created_by_user_id=OWNER,
                created_at=now,
                updated_at=now,
            )
        )
    elif workspace.status in (
        WorkspaceStatus.STOPPING,
        WorkspaceStatus.STOPPED,
        WorkspaceStatus.FAILED,
        WorkspaceStatus.SUSPENDED,
    ):
        # A workspace that was stopping when the last run ended must be stopped before it can be
        # resumed. `work_stopped` is False, because processes of a killed run may still run.
        await store.transition(
            workspace_id,
            lambda locked: workspace_lifecycle.finish_stop(
                locked, locked.workspace.epoch, clock(), work_stopped=False
            ),
        )
        await store.transition(
            workspace_id, lambda locked: workspace_lifecycle.resume(locked, clock())
        )
    return workspace_id


async def _is_deleted(workspace_id: str, store: Store) -> bool:
    """Whether the workspace is being deleted, or has been removed."""
    workspace = await store.get_workspace(workspace_id)
    if workspace is not None:
        return workspace.status is WorkspaceStatus.DELETING
    return await store.find_deleted_workspace(workspace_id, ORG_ID) is not None
