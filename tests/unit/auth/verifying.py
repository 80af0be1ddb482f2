"""Makes verifiers of session tokens, and checks what they refuse."""

import pytest

from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core.errors import Failure
from tests.support.identity_provider import AUDIENCE, ISSUER


def sessions(keys: JwkSet) -> SessionTokens:
    return SessionTokens(keys, ISSUER, AUDIENCE)


async def refused(verifier: SessionTokens, bad: str) -> str:
    """Checks that the token is refused. Returns the message."""
    with pytest.raises(Failure) as raised:
        await verifier.authenticate(bad)
    assert raised.value.slug == "unauthenticated"
    return raised.value.message
