"""API keys: the credential that programs of an organization use."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from evershell.core.caller import Caller, CredentialKind


class KeyTemplate(StrEnum):
    """What a key may do."""

    FULL_ACCESS = "full_access"
    SUBMIT_OBSERVE = "submit_observe"
    READ_ONLY = "read_only"


TEMPLATE_SCOPES = {
    KeyTemplate.FULL_ACCESS: frozenset(
        {"workspace:read", "workspace:write", "tasks:write", "audit:read", "caps:write"}
    ),
    KeyTemplate.SUBMIT_OBSERVE: frozenset(
        {"workspace:read", "workspace:write", "tasks:write", "audit:read"}
    ),
    KeyTemplate.READ_ONLY: frozenset({"workspace:read", "audit:read"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as the database stores it. The secret is not stored, only its SHA-256."""

    id: str
    org_id: str
    name: str
    template: KeyTemplate
    created_at: datetime
    revoked_at: datetime | None = None
    # From then on the key is refused. None: the key does not expire.
    expires_at: datetime | None = None
    # Accurate to about a minute. None: the key was never used.
    last_used_at: datetime | None = None

    def caller(self) -> Caller:
        """The caller that this key authenticates."""
        return Caller(
            org_id=self.org_id,
            actor_id=self.id,
            credential_kind=CredentialKind.API_KEY,
            scopes=TEMPLATE_SCOPES[self.template],
            credential_id=self.id,
        )
