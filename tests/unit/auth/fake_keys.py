"""Fakes of the stored API keys, and of the clock of the cache."""

from dataclasses import replace
from datetime import UTC, datetime

from evershell.auth.api_keys import fingerprint, new_secret
from evershell.core.caller import ApiKey, KeyTemplate
from evershell.core.errors import UnavailableError

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class FakeTimer:
    """A clock in seconds that a test sets. Each reading advances it by `tick`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tick = 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


class FakeKeys:
    """Stands in for the API keys in the database."""

    def __init__(self) -> None:
        self.by_fingerprint: dict[bytes, ApiKey] = {}
        self.asked: list[bytes] = []
        self.unavailable = False

    def add(self) -> str:
        secret = new_secret()
        key = ApiKey(
            id="key_1", org_id="org_a", name="ci", template=KeyTemplate.READ_ONLY, created_at=NOW
        )
        self.by_fingerprint[fingerprint(secret)] = key
        return secret

    def expire(self, secret: str, expires_at: datetime) -> None:
        digest = fingerprint(secret)
        self.by_fingerprint[digest] = replace(self.by_fingerprint[digest], expires_at=expires_at)

    def revoke(self, secret: str) -> None:
        digest = fingerprint(secret)
        self.by_fingerprint[digest] = replace(self.by_fingerprint[digest], revoked_at=NOW)

    async def find(self, digest: bytes) -> ApiKey | None:
        self.asked.append(digest)
        if self.unavailable:
            raise UnavailableError("the database is unavailable")
        return self.by_fingerprint.get(digest)
