"""Session tokens with wrong signatures: what they cost, and that valid tokens stay known."""

import time
from base64 import urlsafe_b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws

from evershell.auth import session_tokens as sessions
from evershell.auth.session_tokens import CACHE_SECONDS, FORGERIES_PER_SECOND, SessionTokens
from evershell.core.errors import Failure
from tests.support.identity_provider import token
from tests.unit.auth.verifying import a_verifier, refused


@pytest.fixture
def verifier(tmp_path: Path) -> SessionTokens:
    return a_verifier(tmp_path)


class CountedSignatures:
    """Counts the signatures that are verified."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._verify = jws.validate_compact
        monkeypatch.setattr(jws, "validate_compact", self)

    def __call__(self, *arguments: Any) -> bool:
        self.count += 1
        return self._verify(*arguments)


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> CountedSignatures:
    return CountedSignatures(monkeypatch)


def forged(number: int = 0) -> str:
    """A token that is valid except for its signature."""
    head, body, _ = token("EdDSA").split(".")
    return f"{head}.{body}.{urlsafe_b64encode(number.to_bytes(64, 'little')).decode().rstrip('=')}"


@pytest.mark.parametrize("changes", [{"exp": 1}, {"iss": "other"}, {"permissions": 7}])
async def test_the_claims_are_checked_before_the_signature(
    verifier: SessionTokens, signatures: CountedSignatures, changes: dict[str, Any]
) -> None:
    await refused(verifier, token(**changes))
    assert signatures.count == 0


async def test_wrong_signatures_are_limited_and_known_tokens_are_not(
    verifier: SessionTokens, signatures: CountedSignatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, stranger = token("EdDSA"), token("EdDSA", sub="user_2")
    caller = await verifier.authenticate(good)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for number in range(FORGERIES_PER_SECOND - 1):
        await refused(verifier, forged(number))
    # The fractions of a second add up to a little less or a little more than one second, so the
    # limit may be reached one token earlier or later.
    for number in range(FORGERIES_PER_SECOND - 1, FORGERIES_PER_SECOND + 1):
        with suppress(Failure):
            await verifier.authenticate(forged(number))
    verified = signatures.count
    rejected = range(FORGERIES_PER_SECOND + 1, FORGERIES_PER_SECOND + 10)
    for unknown in (*map(forged, rejected), stranger):
        with pytest.raises(Failure) as raised:
            await verifier.authenticate(unknown)
        assert (raised.value.slug, raised.value.details["retry_after_seconds"]) == (
            "rate_limited",
            1,
        )
    assert signatures.count == verified
    # A token with a signature that was right before is accepted from the cache, and verified again
    # when its entry expires, in spite of the limit.
    assert await verifier.authenticate(good) is caller
    much_later = time.time() + CACHE_SECONDS + 1
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: much_later)
        assert await verifier.authenticate(good) == caller
    assert signatures.count == verified + 1
    now += 2 / FORGERIES_PER_SECOND
    assert (await verifier.authenticate(stranger)).actor_id == "user_2"


async def test_bad_tokens_do_not_evict_a_good_one(
    tmp_path: Path, signatures: CountedSignatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_MAX_CACHED_TOKENS", 10)
    verifier = a_verifier(tmp_path)
    good = token()
    caller = await verifier.authenticate(good)
    for number in range(50):
        await refused(verifier, forged(number))
    before = signatures.count
    assert await verifier.authenticate(good) is caller
    assert signatures.count == before
