"""An identity provider for tests: keys, the JWK set that names them, and tokens that are good
unless told otherwise.
"""

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
# Making an RSA key takes a while, so all tests share these.
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
KEYS: Mapping[str, Key] = {"RS256": RSA, "ES256": EC, "EdDSA": ED, "Ed25519": ED}


def jwk_set(*keys: Key) -> str:
    """The public halves, as the provider publishes them."""
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]})


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a good token; None takes one away."""
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
    """`kid` empty: the key's own; None: none."""
    key = key or KEYS[algorithm]
    header: dict[str, Any] = {"alg": algorithm, "kid": key.kid if kid == "" else kid}
    if kid is None:
        del header["kid"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        # As JSON in ASCII, in which a provider can send what UTF-8 cannot: half of a surrogate
        # pair.
        return jws.serialize_compact(
            header, json.dumps(claims(**changes)), key, algorithms=[algorithm]
        )
