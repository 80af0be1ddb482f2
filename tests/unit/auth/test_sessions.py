"""Session tokens: which ones are accepted or refused, and what wrong signatures cost."""

import json
import time
from base64 import urlsafe_b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey

from evershell.auth import session_tokens
from evershell.auth.session_tokens import (
    CACHE_SECONDS,
    FORGERIES_PER_SECOND,
    LEEWAY_SECONDS,
    JwkSet,
    SessionTokens,
)
from evershell.core.caller import CredentialKind
from evershell.core.errors import Failure
from tests.support.forgeries import TOKENS, Victim
from tests.support.identity_provider import AUDIENCE, EC, ED, RSA, claims, jwk_set, token
from tests.unit.auth.verifying import refused, sessions

# These are nested too deeply for a recursive parser.
DEEP_LIST = '{"a":' + "[" * 11_000
DEEP_OBJECT = '{"a":' * 2_000


# Texts that PostgreSQL cannot store, that are too long, or that have invisible characters.
UNSTORABLE = ["a\0b", "\ud800", "a\nb", "a\u202eb", "a" * 256, "ü" * 128]


@pytest.fixture
def verifier(tmp_path: Path) -> SessionTokens:
    """A verifier that reads the identity provider's keys from a file."""
    path = tmp_path / "jwks.json"
    path.write_text(jwk_set(RSA, EC, ED))
    return sessions(JwkSet(str(path)))


def encoded(part: object) -> str:
    text = part if isinstance(part, str) else json.dumps(part)
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA", "Ed25519"])
async def test_a_valid_token_identifies_its_user(verifier: SessionTokens, algorithm: str) -> None:
    caller = await verifier.authenticate(token(algorithm))
    assert (caller.org_id, caller.actor_id, caller.user_id) == ("org_a", "user_1", "user_1")
    assert caller.credential_kind is CredentialKind.SESSION
    assert caller.scopes == {"workspace:read", "workspace:write:own"}


async def test_a_token_without_permissions_has_no_scopes(verifier: SessionTokens) -> None:
    assert (await verifier.authenticate(token(permissions=None))).scopes == frozenset()


@pytest.mark.parametrize("attack", TOKENS)
async def test_a_forged_token_is_refused(verifier: SessionTokens, attack: str) -> None:
    """tests/faults/long/attacks sends such tokens to a whole stack."""
    victim = Victim(
        key=EC,
        kid="ec",
        claims=claims(),
        api_key="sk_secret",
        agent_token="ws_1.1.1.00",
        url="http://127.0.0.1:1/attacker.json",
    )
    assert (await verifier.authenticate(victim.good())).actor_id == "user_1"
    await refused(verifier, TOKENS[attack](victim))


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": []},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": -1},
        {"exp": 10**400},
        {"nbf": True},
        {"nbf": float("nan")},
        {"iat": -1},
        {"sub": ""},
        {"sub": 7},
        {"sub": "System:limit"},
        {"sub": "key_01M87BM0P43R0RRYFB6HF29RVY"},
        *({name: text} for name in ("sub", "org_id") for text in UNSTORABLE),
        {"permissions": ["workspace:read", UNSTORABLE[0]]},
        {"permissions": [""]},
        {"permissions": "workspace:read"},
        {"permissions": ["workspace:read", 7]},
    ],
)
async def test_a_wrong_claim_is_refused(verifier: SessionTokens, changes: dict[str, Any]) -> None:
    await refused(verifier, token(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": time.time() + 86_400.5},
        {"exp": 253_402_300_799},
        {"nbf": 0, "iat": 1},
        {"aud": ["other", AUDIENCE]},
        {"sub": "auth0|5f7c", "org_id": "a" * 255},
        {"sub": "ü" * 127, "org_id": "Ärzte ohne Grenzen 🐚"},
        {"permissions": []},
    ],
)
async def test_an_unusual_but_valid_claim_is_accepted(
    verifier: SessionTokens, changes: dict[str, Any]
) -> None:
    caller = await verifier.authenticate(token(**changes))
    assert {"sub": caller.actor_id, "org_id": caller.org_id}.items() >= {
        name: value for name, value in changes.items() if name in ("sub", "org_id")
    }.items()


async def test_the_refusal_of_an_expired_token_says_expired(verifier: SessionTokens) -> None:
    assert "expired" in await refused(verifier, token(exp=int(time.time()) - LEEWAY_SECONDS - 1))


async def test_clocks_may_differ_by_the_leeway(verifier: SessionTokens) -> None:
    now = int(time.time())
    await verifier.authenticate(token(exp=now - LEEWAY_SECONDS + 3))
    await verifier.authenticate(token(nbf=now + LEEWAY_SECONDS - 1))


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [("RS384", RSA), ("PS256", RSA), ("ES384", ECKey.generate_key("P-384", {"kid": "ec"}))],
)
async def test_another_algorithm_is_refused(
    verifier: SessionTokens, algorithm: str, key: RSAKey | ECKey
) -> None:
    await refused(
        verifier,
        jwt.encode({"alg": algorithm, "kid": key.kid}, claims(), key, algorithms=[algorithm]),
    )


@pytest.mark.parametrize(
    "bad",
    [
        "eyJ",
        "eyJ\u00e9.a.b",
        f"{encoded([1])}.a.b",
        f"{encoded({'alg': 'RS256', 'kid': ['rsa']})}.a.b",
        f"{encoded({'alg': ['RS256'], 'kid': 'rsa'})}.a.b",
        f"{encoded({'kid': 'rsa'})}.a.b",
        f"{encoded({'alg': 'RS256', 'kid': 'rsa', 'crit': ['x']})}.{encoded(claims())}.AAAA",
        f"{encoded({'alg': 'RS256', 'kid': 'rsa', 'b64': False})}.{encoded(claims())}.AAAA",
        "eyJ" + "A" * 12_000,
        f"{encoded(DEEP_LIST)}.a.b",
        f"{encoded(DEEP_OBJECT)}.a.b",
    ],
)
async def test_a_malformed_token_is_refused(verifier: SessionTokens, bad: str) -> None:
    await refused(verifier, bad)


async def test_a_verified_token_is_cached_until_it_expires(
    verifier: SessionTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires_at = int(time.time()) + 30
    good = token(exp=expires_at)
    first = await verifier.authenticate(good)
    assert await verifier.authenticate(good) is first
    monkeypatch.setattr(time, "time", lambda: expires_at + LEEWAY_SECONDS + 1)
    assert "expired" in await refused(verifier, good)


class CountedSignatures:
    """Counts how often a signature is verified."""

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
    """Returns a token that is valid except for its signature."""
    head, body, _ = token("EdDSA").split(".")
    return f"{head}.{body}.{urlsafe_b64encode(number.to_bytes(64, 'little')).decode().rstrip('=')}"


@pytest.mark.parametrize("subject", ["agent:ws_1", "Agent:ws_1", "key_1", "system:limit"])
async def test_no_user_has_the_id_of_another_kind_of_actor(
    verifier: SessionTokens, subject: str
) -> None:
    await refused(verifier, token(sub=subject))


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
    # Because of rounding, the limit may be reached one token earlier or later.
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
    # The limit does not apply to a token whose signature was verified before. It is accepted from
    # the cache, and verified again when its cache entry expires.
    assert await verifier.authenticate(good) is caller
    much_later = time.time() + CACHE_SECONDS + 1
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: much_later)
        assert await verifier.authenticate(good) == caller
    assert signatures.count == verified + 1
    now += 2 / FORGERIES_PER_SECOND
    assert (await verifier.authenticate(stranger)).actor_id == "user_2"


@pytest.fixture
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_tokens, "_MAX_CACHED_TOKENS", 10)


async def test_bad_tokens_do_not_evict_a_good_one(
    small_caches: None, verifier: SessionTokens, signatures: CountedSignatures
) -> None:
    good = token()
    caller = await verifier.authenticate(good)
    for number in range(50):
        await refused(verifier, forged(number))
    before = signatures.count
    assert await verifier.authenticate(good) is caller
    assert signatures.count == before
