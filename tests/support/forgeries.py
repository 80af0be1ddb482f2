"""Forged and ambiguous credentials. Every protocol must refuse each of them."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import time
from typing import Any

from joserfc import jwe, jws
from joserfc.jwk import ECKey, Key, OctKey

Headers = tuple[tuple[str, str], ...]

ATTACKER = ECKey.generate_key("P-256", {"kid": "attacker"})


@dataclass(frozen=True)
class Victim:
    """A service to attack: what an attacker may know, and what else the forgeries need."""

    # The identity provider's key, and its id. An attacker does not have the private half of the
    # key. Some forgeries need it, because they begin with a token that the provider has signed.
    key: Key
    kid: str
    # The claims of a valid token.
    claims: Mapping[str, Any]
    # A valid API key.
    api_key: str
    # A valid token of an agent.
    agent_token: str
    # The URL of a JWK set with the attacker's key.
    url: str

    def good(self, **changes: Any) -> str:
        """Returns a token that the provider has signed, with changed claims.

        A claim whose new value is None is left out.
        """
        claims = {**self.claims, **changes}
        claims = {name: value for name, value in claims.items() if value is not None}
        return put_together({"alg": "ES256", "kid": self.kid}, claims, self.key)

    def forged(self, **header: Any) -> str:
        """Returns a token with valid claims that the attacker has signed."""
        return put_together({"alg": "ES256", "kid": "attacker", **header}, self.claims, ATTACKER)


def bearer(token: str) -> Headers:
    return (("authorization", f"Bearer {token}"),)


def put_together(header: Mapping[str, Any], claims: Any, key: Key) -> str:
    """Returns a token that is signed with ES256, even if its header names another algorithm."""
    signing_input = f"{_part(header)}.{_part(claims)}"
    signature = jws.JWSRegistry.algorithms["ES256"].sign(signing_input.encode(), key)
    return f"{signing_input}.{_base64(signature)}"


def _part(value: Any) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _unsigned(victim: Victim, algorithm: str) -> str:
    return f"{_part({'alg': algorithm, 'kid': victim.kid})}.{_part(victim.claims)}."


def _confused(victim: Victim) -> str:
    """Returns a token signed with HS256, where the provider's public key is the secret."""
    secret = OctKey.import_key(json.dumps(victim.key.as_dict(private=False)))
    signing_input = f"{_part({'alg': 'HS256', 'kid': victim.kid})}.{_part(victim.claims)}"
    signature = jws.JWSRegistry.algorithms["HS256"].sign(signing_input.encode(), secret)
    return f"{signing_input}.{_base64(signature)}"


def _promoted(victim: Victim) -> str:
    """Returns a valid token with more permissions, but with the old signature."""
    header, _, signature = victim.good(permissions=[]).split(".")
    return f"{header}.{_part(victim.claims)}.{signature}"


def _swapped(victim: Victim) -> str:
    header, claims, _ = victim.good().split(".")
    return f"{header}.{claims}.{victim.good(sub='other').rpartition('.')[2]}"


def _encrypted(victim: Victim) -> str:
    """Returns a token of five parts (JWE), encrypted with a key whose id the header names."""
    header = {"alg": "dir", "enc": "A128GCM", "kid": victim.kid}
    key = OctKey.generate_key(128, {"kid": victim.kid})
    return jwe.encrypt_compact(header, json.dumps(victim.claims), key)


def _twice(first: str, second: str) -> Headers:
    return (("authorization", first), ("authorization", second))


def _key(victim: Victim) -> str:
    return f"Bearer {victim.api_key}"


Forge = Callable[[Victim], Headers]
TOKENS: dict[str, Callable[[Victim], str]] = {
    "no algorithm": lambda v: _unsigned(v, "none"),
    "no algorithm, in another spelling": lambda v: _unsigned(v, "NoNe"),
    "no signature": lambda v: _unsigned(v, "ES256"),
    "HS256 with the public key as the secret": _confused,
    "a foreign key under a known kid": lambda v: v.forged(kid=v.kid),
    "an algorithm that the key does not fit": lambda v: v.forged(kid=v.kid, alg="RS256"),
    "an algorithm that is not allowed": lambda v: v.forged(kid=v.kid, alg="ES384"),
    "changed claims": _promoted,
    "a swapped signature": _swapped,
    "a foreign issuer": lambda v: v.good(iss="https://attacker.example"),
    "a foreign audience": lambda v: v.good(aud="another service"),
    "no issuer": lambda v: v.good(iss=None),
    "no audience": lambda v: v.good(aud=None),
    "no organization": lambda v: v.good(org_id=None),
    "an organization that is a list": lambda v: v.good(org_id=["org_demo", "org_a"]),
    "no subject": lambda v: v.good(sub=None),
    "no expiry": lambda v: v.good(exp=None),
    "an expiry that is a text": lambda v: v.good(exp="never"),
    "expired": lambda v: v.good(exp=int(time()) - 60),
    "not valid yet": lambda v: v.good(nbf=int(time()) + 600),
    "claims that are a list": lambda v: put_together({"alg": "ES256", "kid": v.kid}, [], v.key),
    "jku names a set of the attacker": lambda v: v.forged(jku=v.url),
    "x5u names a certificate of the attacker": lambda v: v.forged(x5u=v.url),
    "x5c holds a certificate of the attacker": lambda v: v.forged(x5c=["TUlJQg=="]),
    "jwk holds the key, under a known kid": lambda v: v.forged(
        kid=v.kid, jwk=ATTACKER.as_dict(private=False)
    ),
    "jwk holds the key, and there is no kid": lambda v: v.forged(
        kid=None, jwk=ATTACKER.as_dict(private=False)
    ),
    "kid is a path": lambda v: v.forged(kid="../attacker.json"),
    "kid is a device": lambda v: v.forged(kid="/dev/null"),
    "kid is a URL": lambda v: v.forged(kid=v.url),
    "kid is SQL": lambda v: v.forged(kid="x' UNION SELECT 'key'; --"),
    "kid is a command": lambda v: v.forged(kid="ec; touch /tmp/kid #"),
    "kid is very long": lambda v: v.forged(kid="k" * 4_000),
    "kid is a number": lambda v: v.forged(kid=0),
    "kid has control characters": lambda v: v.forged(kid="ec\n\x1b[2J\0"),
    "deeply nested": lambda v: f"{_part({'alg': 'ES256'})}.{_base64(b'[' * 9_000)}.AAAA",
    "oversized": lambda v: v.good(sub="x" * 13_000),
    "malformed": lambda v: "eyJ.eyJ",
    "an encrypted token": _encrypted,
    "two signatures": lambda v: f"{v.good()}.{v.good().rpartition('.')[2]}",
    "two tokens in one value": lambda v: f"{v.api_key},Bearer {v.api_key}",
    "two tokens, one space": lambda v: f"{v.api_key} {v.api_key}",
    "an unknown key": lambda v: "sk_" + "A" * 43,
    "a part of a key": lambda v: v.api_key[:-1],
    "an SQL key": lambda v: "sk_' OR ''='",
    "a key with a wildcard": lambda v: "sk_%",
    "the fingerprint of a key": lambda v: "sk_" + "00" * 32,
    "an agent's token": lambda v: v.agent_token,
    "an agent's token as a key": lambda v: f"sk_{v.agent_token}",
}
_HEADERS: dict[str, Forge] = {
    "no credential": lambda v: (),
    "an empty credential": lambda v: (("authorization", ""),),
    "another scheme": lambda v: (("authorization", f"Basic {v.api_key}"),),
    "no scheme": lambda v: (("authorization", v.api_key),),
    "a good header, then a bad one": lambda v: _twice(_key(v), "Bearer sk_unknown"),
    "a bad header, then a good one": lambda v: _twice("Bearer sk_unknown", _key(v)),
    "the same good header twice": lambda v: _twice(_key(v), _key(v)),
    "a key, then an agent's token": lambda v: _twice(_key(v), f"Bearer {v.agent_token}"),
    "the credential in another header": lambda v: (
        ("x-authorization", _key(v)),
        ("proxy-authorization", _key(v)),
        ("cookie", f"authorization={v.api_key}"),
    ),
    "identity in headers": lambda v: (
        ("x-evershell-org", str(v.claims["org_id"])),
        ("x-evershell-actor", "key_full_access"),
        ("x-forwarded-user", "user_1"),
        ("x-envoy-internal", "true"),
        ("x-evershell-edge", "rest"),
    ),
}


def _in_header(make: Callable[[Victim], str]) -> Forge:
    return lambda victim: bearer(make(victim))


FORGED: dict[str, Forge] = {
    **{name: _in_header(make) for name, make in TOKENS.items()},
    **_HEADERS,
}
