"""Session tokens: which are accepted, and which are refused."""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey

from evershell.auth.session_tokens import LEEWAY_SECONDS, SessionTokens
from evershell.core.caller import CredentialKind
from tests.support.identity_provider import AUDIENCE, EC, RSA, claims, token
from tests.unit.auth.verifying import a_verifier, refused

# Nested too deep for a recursive parser.
DEEP_LIST = '{"a":' + "[" * 11_000
DEEP_OBJECT = '{"a":' * 2_000


# Text that PostgreSQL cannot store or index, and invisible characters.
UNSTORABLE = ["a\0b", "\ud800", "a\nb", "a\u202eb", "a" * 256, "ü" * 128]


@pytest.fixture
def verifier(tmp_path: Path) -> SessionTokens:
    return a_verifier(tmp_path)


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


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": -1},
        {"exp": 10**400},
        {"nbf": time.time() + 600},
        {"nbf": True},
        {"nbf": float("nan")},
        {"iat": -1},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "System:limit"},
        {"sub": "key_01M87BM0P43R0RRYFB6HF29RVY"},
        {"org_id": None},
        {"org_id": ["org_a"]},
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
        {"exp": time.time() + 600.5},
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


async def test_a_token_without_an_algorithm_is_refused(verifier: SessionTokens) -> None:
    for algorithm in ("none", "None", "NONE", ""):
        await refused(verifier, f"{encoded({'alg': algorithm, 'kid': 'rsa'})}.{encoded(claims())}.")


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(
    verifier: SessionTokens, algorithm: str
) -> None:
    for secret in (RSA.as_pem(private=False), json.dumps(RSA.as_dict(private=False)).encode()):
        signed = f"{encoded({'alg': algorithm, 'kid': 'rsa'})}.{encoded(claims())}"
        digest = hmac.new(secret, signed.encode(), f"sha{algorithm[2:]}").digest()
        await refused(verifier, f"{signed}.{urlsafe_b64encode(digest).decode().rstrip('=')}")


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


async def test_a_changed_token_is_refused(verifier: SessionTokens) -> None:
    head, body, signature = token().split(".")
    await refused(verifier, f"{head}.{encoded(claims(sub='user_2'))}.{signature}")
    await refused(verifier, f"{head}.{body}.{signature[:-8]}AAAAAAAA")
    await refused(verifier, f"{head}.{body}.")


@pytest.mark.parametrize(
    "bad",
    [
        "eyJ",
        "eyJ.eyJ.eyJ",
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


async def test_claims_that_are_not_an_object_are_refused(verifier: SessionTokens) -> None:
    key, header = EC, {"alg": "ES256", "kid": "ec"}
    for payload in ("[]", "7", "null", "", "{", "[" * 9_000):
        await refused(verifier, jws.serialize_compact(header, payload, key, algorithms=["ES256"]))


async def test_a_verified_token_is_cached_until_it_expires(
    verifier: SessionTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires_at = int(time.time()) + 30
    good = token(exp=expires_at)
    first = await verifier.authenticate(good)
    assert await verifier.authenticate(good) is first
    monkeypatch.setattr(time, "time", lambda: expires_at + LEEWAY_SECONDS + 1)
    assert "expired" in await refused(verifier, good)
