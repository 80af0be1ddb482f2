"""Verifiers of session tokens, and what they refuse."""

from pathlib import Path

import pytest

from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core.errors import Failure
from tests.support.identity_provider import AUDIENCE, EC, ED, ISSUER, RSA, jwk_set


def sessions(keys: JwkSet) -> SessionTokens:
    return SessionTokens(keys, ISSUER, AUDIENCE)


def a_verifier(folder: Path) -> SessionTokens:
    """A verifier with the keys of the provider, from a file."""
    path = folder / "jwks.json"
    path.write_text(jwk_set(RSA, EC, ED))
    return sessions(JwkSet(str(path)))


async def refused(verifier: SessionTokens, bad: str) -> str:
    """Checks that the token is refused, and returns the message."""
    with pytest.raises(Failure) as raised:
        await verifier.authenticate(bad)
    assert raised.value.slug == "unauthenticated"
    return raised.value.message
