"""The signing keys of the control plane, in the file control-plane.jwk.

The file has a JWK or, while the key is rotated, a JWK set (RFC 7517). New secrets, and certificates
of new agents, are made from the first key. Secrets and certificates that were made from the other
keys are still accepted. agent_certificates.py says which key the control plane's own certificates
are made from.
"""

import json
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path

from evershell.core.errors import OperatorError

# The length of a private key of Ed25519 (RFC 8032).
_KEY_BYTES = 32


def read_signing_keys(path: Path) -> str:
    """The content of the file. Raises OperatorError unless each key in it is valid."""
    try:
        text = path.read_text("utf-8")
        private_keys(text)
    except FileNotFoundError as error:
        message = f"{path} cannot be read ({error.strerror}). `evershell up` creates it."
        raise OperatorError(message) from error
    except OSError as error:
        raise OperatorError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError:
        # The cause is not shown, because it contains a part of the file.
        raise OperatorError(f"{path} is not valid: it is not text.") from None
    except ValueError as error:
        raise OperatorError(f"{path} is not valid: {error}.") from None
    return text


def new_key() -> str:
    """A new private key, as a JWK in JSON."""
    # Imported here, because joserfc takes 30 ms to import, and most programs only read keys.
    from joserfc.jwk import OKPKey

    return json.dumps(OKPKey.generate_key("Ed25519").as_dict(private=True))


def private_keys(text: str) -> Sequence[bytes]:
    """The 32 secret bytes of each key: `d` of its JWK (RFC 8037).

    Raises ValueError if the text has no key, or a key that is not valid.
    """
    return [_private_bytes(each) for each in _jwks(text)]


def with_new_key(text: str) -> str:
    """The keys of the text, preceded by a new one. Raises ValueError."""
    return json.dumps({"keys": [json.loads(new_key()), *_jwks(text)]})


def with_first_key(text: str) -> str:
    """The text of the key file, reduced to its first key. Raises ValueError."""
    return json.dumps(_jwks(text)[0])


def _jwks(text: str) -> list[dict[str, str]]:
    try:
        jwk_or_set = json.loads(text)
        keys = jwk_or_set.get("keys", [jwk_or_set])
        for each in keys:
            _private_bytes(each)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError("it is neither a private JWK nor a set of them") from error
    if not keys:
        raise ValueError("the set has no key")
    return list(keys)


def _private_bytes(jwk: dict[str, str]) -> bytes:
    encoded = jwk["d"]
    private_bytes = b64decode(encoded + "=" * (-len(encoded) % 4), altchars="-_", validate=True)
    # Anyone could derive the secrets of agents from an empty key.
    if len(private_bytes) != _KEY_BYTES:
        raise ValueError(f"a private key has {_KEY_BYTES} bytes")
    return private_bytes
