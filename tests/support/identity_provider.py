"""An identity provider for tests: keys, a JWK set, and tokens that are valid by default."""

import json
import time
import warnings
from collections.abc import Mapping
from typing import Any

from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

ISSUER = "https://idp.example"
AUDIENCE = "evershell"
# All tests share these keys, because it takes long to generate an RSA key.
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
KEYS: Mapping[str, Key] = {"RS256": RSA, "ES256": EC, "EdDSA": ED, "Ed25519": ED}


def jwk_set(*keys: Key) -> str:
    """Returns the JWK set of the public keys, as the provider publishes it."""
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]})


def claims(**changes: Any) -> dict[str, Any]:
    """Returns the claims of a valid token, with changes. Leaves out claims that are set to None."""
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "user_1",
        "org_id": "org_a",
        "exp": int(time.time()) + 600,
        "permissions": ["workspace:read", "workspace:write:own"],
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(
    algorithm: str = "RS256", key: Key | None = None, kid: str | None = "", **changes: Any
) -> str:
    """Returns a signed token.

    If `kid` is empty, the header's `kid` is the id of the key. If `kid` is None, the header has no
    `kid`.
    """
    key = key or KEYS[algorithm]
    header: dict[str, Any] = {"alg": algorithm, "kid": key.kid if kid == "" else kid}
    if kid is None:
        del header["kid"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        # json.dumps escapes non-ASCII characters, so the claims may contain half of a surrogate
        # pair, which UTF-8 cannot encode.
        return jws.serialize_compact(
            header, json.dumps(claims(**changes)), key, algorithms=[algorithm]
        )
