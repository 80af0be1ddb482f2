"""Sealed secrets: who can open them, before and during a rotation of the signing key."""

import pytest

from evershell.auth.sealing import SigningKeySealing
from evershell.auth.signing_keys import new_key, with_first_key, with_new_key
from evershell.core.errors import UnavailableError

OLD = new_key()
BOTH = with_new_key(OLD)
NEW = with_first_key(BOTH)


def test_a_sealed_secret_is_opened_for_its_owner_alone() -> None:
    sealing = SigningKeySealing(OLD)
    sealed = sealing.seal(b"secret", "wh_1")
    assert b"secret" not in sealed
    assert sealing.open(sealed, "wh_1") == b"secret"
    assert sealing.seal(b"secret", "wh_1") != sealed
    with pytest.raises(ValueError):
        sealing.open(sealed, "wh_2")
    with pytest.raises(ValueError):
        sealing.open(sealed[:-1] + bytes([sealed[-1] ^ 1]), "wh_1")


def test_a_worker_without_the_key_cannot_open_it_now() -> None:
    """Another worker, which already has the new key, has sealed the secret."""
    sealed = SigningKeySealing(BOTH).seal(b"secret", "wh_1")
    assert sealed.startswith(SigningKeySealing(NEW).key_id)
    assert SigningKeySealing(NEW).open(sealed, "wh_1") == b"secret"
    with pytest.raises(UnavailableError):
        SigningKeySealing(OLD).open(sealed, "wh_1")
    assert SigningKeySealing(BOTH).open(SigningKeySealing(OLD).seal(b"a", "b"), "b") == b"a"
