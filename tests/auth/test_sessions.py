"""Session tokens: which are good, and which are not, whatever is wrong with them."""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey

from server.auth.sessions import LEEWAY_SECONDS, JwkSet, Sessions
from server.core.caller import CredentialKind
from server.core.errors import Failure
from tests.auth.identity_provider import AUDIENCE, EC, ED, ISSUER, RSA, claims, jwk_set, token

# Nested deeper than a recursive parser may go.
DEEP_LIST = '{"a":' + "[" * 11_000
DEEP_OBJECT = '{"a":' * 2_000


@pytest.fixture
def verifier(tmp_path: Path) -> Sessions:
    path = tmp_path / "jwks.json"
    path.write_text(jwk_set(RSA, EC, ED))
    return Sessions(JwkSet(str(path)), ISSUER, AUDIENCE)


async def refused(verifier: Sessions, bad: str) -> str:
    with pytest.raises(Failure) as raised:
        await verifier.authenticate(bad)
    assert raised.value.code == "unauthenticated"
    return raised.value.message


def encoded(part: object) -> str:
    text = part if isinstance(part, str) else json.dumps(part)
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA", "Ed25519"])
async def test_a_good_token_is_its_user(verifier: Sessions, algorithm: str) -> None:
    caller = await verifier.authenticate(token(algorithm))
    assert (caller.org_id, caller.actor_id, caller.user_id) == ("org_a", "user_1", "user_1")
    assert caller.credential_kind is CredentialKind.SESSION
    assert caller.scopes == {"workspace:read", "workspace:write:own"}


async def test_a_token_for_several_audiences_is_good(verifier: Sessions) -> None:
    await verifier.authenticate(token(aud=["other", AUDIENCE]))


async def test_a_token_without_permissions_may_nothing(verifier: Sessions) -> None:
    assert (await verifier.authenticate(token(permissions=None))).scopes == frozenset()


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"iss": ISSUER + "/"},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"aud": 7},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"nbf": time.time() + 600},
        {"nbf": "now"},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"org_id": None},
        {"org_id": ""},
        {"org_id": 7},
        {"org_id": ["org_a"]},
        {"permissions": "workspace:read"},
        {"permissions": {"workspace:read": True}},
        {"permissions": ["workspace:read", 7]},
        {"permissions": 7},
    ],
)
async def test_a_wrong_claim_is_refused(verifier: Sessions, changes: dict[str, Any]) -> None:
    await refused(verifier, token(**changes))


async def test_an_expired_token_is_told_so(verifier: Sessions) -> None:
    assert "expired" in await refused(verifier, token(exp=int(time.time()) - LEEWAY_SECONDS - 1))


async def test_clocks_may_differ_a_little(verifier: Sessions) -> None:
    now = int(time.time())
    await verifier.authenticate(token(exp=now - LEEWAY_SECONDS + 3))
    await verifier.authenticate(token(nbf=now + LEEWAY_SECONDS - 1))


async def test_a_token_without_an_algorithm_is_refused(verifier: Sessions) -> None:
    for algorithm in ("none", "None", "NONE", ""):
        await refused(verifier, f"{encoded({'alg': algorithm, 'kid': 'rsa'})}.{encoded(claims())}.")


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(verifier: Sessions, algorithm: str) -> None:
    for secret in (RSA.as_pem(private=False), json.dumps(RSA.as_dict(private=False)).encode()):
        signed = f"{encoded({'alg': algorithm, 'kid': 'rsa'})}.{encoded(claims())}"
        digest = hmac.new(secret, signed.encode(), f"sha{algorithm[2:]}").digest()
        await refused(verifier, f"{signed}.{urlsafe_b64encode(digest).decode().rstrip('=')}")


@pytest.mark.parametrize(
    ("algorithm", "key"), [("RS384", RSA), ("PS256", RSA), ("ES384", ECKey.generate_key("P-384", {"kid": "ec"}))]
)
async def test_another_algorithm_is_refused(verifier: Sessions, algorithm: str, key: RSAKey | ECKey) -> None:
    await refused(verifier, jwt.encode({"alg": algorithm, "kid": key.kid}, claims(), key, algorithms=[algorithm]))


async def test_anothers_key_under_a_known_name_is_refused(verifier: Sessions) -> None:
    await refused(verifier, token("ES256", ECKey.generate_key("P-256"), kid="ec"))


@pytest.mark.parametrize(("algorithm", "kid"), [("RS256", "ec"), ("ES256", "rsa"), ("ES256", "ed"), ("EdDSA", "ec")])
async def test_a_key_of_another_kind_is_refused(verifier: Sessions, algorithm: str, kid: str) -> None:
    await refused(verifier, token(algorithm, kid=kid))


async def test_a_key_in_the_token_itself_is_not_trusted(verifier: Sessions) -> None:
    own = ECKey.generate_key("P-256", {"kid": "mine"})
    header = {"alg": "ES256", "jwk": own.as_dict(private=False), "kid": "mine"}
    await refused(verifier, jwt.encode(header, claims(), own, algorithms=["ES256"]))


async def test_a_changed_token_is_refused(verifier: Sessions) -> None:
    head, body, signature = token().split(".")
    await refused(verifier, f"{head}.{encoded(claims(sub='user_2'))}.{signature}")
    await refused(verifier, f"{head}.{body}.{signature[:-8]}AAAAAAAA")
    await refused(verifier, f"{head}.{body}.")


@pytest.mark.parametrize(
    "bad",
    [
        "eyJ",
        "eyJ.eyJ.eyJ",
        "eyJ....",
        "eyJ\u00e9.a.b",
        f"{encoded([1])}.a.b",
        f"{encoded({'alg': 'RS256', 'kid': 7})}.a.b",
        f"{encoded({'alg': 'RS256', 'kid': ['rsa']})}.a.b",
        f"{encoded({'alg': ['RS256'], 'kid': 'rsa'})}.a.b",
        f"{encoded({'alg': {}, 'kid': 'rsa'})}.a.b",
        f"{encoded({'kid': 'rsa'})}.a.b",
        f"{encoded({'alg': 'RS256', 'kid': 'rsa', 'crit': ['x']})}.{encoded(claims())}.AAAA",
        f"{encoded({'alg': 'RS256', 'kid': 'rsa', 'b64': False})}.{encoded(claims())}.AAAA",
        "eyJ" + "A" * 12_000,
        f"{encoded(DEEP_LIST)}.a.b",
        f"{encoded(DEEP_OBJECT)}.a.b",
    ],
)
async def test_what_is_no_token_is_refused(verifier: Sessions, bad: str) -> None:
    await refused(verifier, bad)


async def test_claims_that_are_no_object_are_refused(verifier: Sessions) -> None:
    key, header = EC, {"alg": "ES256", "kid": "ec"}
    for payload in ("[]", "7", "null", "", "{", "[" * 9_000):
        await refused(verifier, jws.serialize_compact(header, payload, key, algorithms=["ES256"]))


async def test_a_token_that_was_verified_serves_until_it_expires(verifier: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    expires_at = int(time.time()) + 30
    good = token(exp=expires_at)
    first = await verifier.authenticate(good)
    assert await verifier.authenticate(good) is first
    monkeypatch.setattr(time, "time", lambda: expires_at + LEEWAY_SECONDS + 1)
    assert "expired" in await refused(verifier, good)
