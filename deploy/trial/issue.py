"""Takes the place of an identity provider in a trial.

    python issue.py                      makes a key, and jwks.json with its public half
    python issue.py ORG USER SCOPE...    prints a session token that is valid for a day

Both commands use the current folder. The private key is in provider.jwk. Anyone who has this file
can act as any user.
"""

import json
import os
import sys
import time
from pathlib import Path

from joserfc import jwt
from joserfc.jwk import ECKey, KeyParameters

ISSUER = "https://provider.trial.internal"
_AUDIENCE = "evershell"
_SECONDS = 24 * 3600
_PARAMETERS: KeyParameters = {"kid": "trial", "use": "sig", "alg": "ES256"}


def provider_key() -> ECKey:
    """The key in provider.jwk. Makes the key if the file does not exist."""
    path = Path("provider.jwk")
    if not path.exists():
        key = ECKey.generate_key("P-256", _PARAMETERS)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(key.as_dict(private=True), file)
    return ECKey.import_key(json.loads(path.read_text()))


def main(arguments: list[str]) -> None:
    """Makes the key, or issues a token."""
    key = provider_key()
    Path("jwks.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    if not arguments:
        return
    org_id, user_id, *scopes = arguments
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": _AUDIENCE,
        "sub": user_id,
        "org_id": org_id,
        "permissions": scopes,
        "exp": now + _SECONDS,
    }
    sys.stdout.write(jwt.encode({"alg": "ES256", "kid": "trial"}, claims, key) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
