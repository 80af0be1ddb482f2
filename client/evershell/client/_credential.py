"""The credential of a call."""

import os
from collections.abc import Awaitable, Callable

from evershell.client.errors import ConfigurationError

CREDENTIAL_VARIABLE = "EVERSHELL_API_KEY"

Credential = str | Callable[[], str]
AsyncCredential = str | Callable[[], str] | Callable[[], Awaitable[str]]


def find_credential(credential: AsyncCredential | None) -> AsyncCredential:
    """The credential, or the one in EVERSHELL_API_KEY. Raises ConfigurationError."""
    found = credential or os.environ.get(CREDENTIAL_VARIABLE, "")
    if not found:
        raise ConfigurationError(
            f"There is no credential. Pass `credential`, or set {CREDENTIAL_VARIABLE} to an API "
            "key."
        )
    return check(found) if isinstance(found, str) else found


def check(token: str) -> str:
    """Returns the token. Raises ConfigurationError, which does not contain it."""
    is_text = isinstance(token, str) and bool(token)
    if not is_text or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(
            "The credential is not valid: it is empty, or contains characters that no API key and "
            "no session token has."
        )
    return token
