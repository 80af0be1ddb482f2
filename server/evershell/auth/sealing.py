"""Encrypts secrets that the database stores, with keys derived from the signing keys."""

import os
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from evershell.auth.signing_keys import private_keys
from evershell.core.errors import UnavailableError

_KEY_BYTES = 32
# NIST SP 800-38D, section 8.2.2: random nonces of 96 bits.
_NONCE_BYTES = 12
KEY_ID_BYTES = 8


class SigningKeySealing:
    """Implements core.ports.Sealing with AES-256-GCM.

    The sealed bytes are the id of the key, the nonce, and the ciphertext with its tag. `seal` uses
    the first signing key. `open` uses the key that sealed the bytes.
    """

    def __init__(self, signing_keys: str) -> None:
        """`signing_keys` is the content of the key file. Raises ValueError."""
        derived = [_derived(each) for each in private_keys(signing_keys)]
        self._keys = {_key_id(key): AESGCM(key) for key in derived}
        self.key_id = _key_id(derived[0])

    def seal(self, plain: bytes, owner: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return self.key_id + nonce + self._keys[self.key_id].encrypt(nonce, plain, owner.encode())

    def open(self, sealed: bytes, owner: str) -> bytes:
        key_id, nonce = sealed[:KEY_ID_BYTES], sealed[KEY_ID_BYTES : KEY_ID_BYTES + _NONCE_BYTES]
        key = self._keys.get(key_id)
        if key is None:
            raise UnavailableError("this worker does not have the signing key of a sealed secret")
        try:
            return key.decrypt(nonce, sealed[KEY_ID_BYTES + _NONCE_BYTES :], owner.encode())
        except InvalidTag as error:
            raise ValueError("the sealed secret is not authentic") from error


def _derived(private_key: bytes) -> bytes:
    info = b"evershell sealing"
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(private_key)


def _key_id(key: bytes) -> bytes:
    return sha256(b"evershell sealing key id" + key).digest()[:KEY_ID_BYTES]
