"""Reads the idempotency key of a call."""

from hashlib import sha256

from google.protobuf.message import Message

from evershell.api.call import current
from evershell.core import errors
from evershell.core.idempotency_key import MAX_KEY_CHARACTERS, IdempotencyKey

HEADER = "idempotency-key"


def idempotency_key(request: Message) -> IdempotencyKey | None:
    """The key of the current call; None if it has none. Raises Failure validation_error."""
    key = current().metadata.get(HEADER)
    if key is None:
        return None
    if not (0 < len(key) <= MAX_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        raise errors.invalid({HEADER: f"must have 1 to {MAX_KEY_CHARACTERS} printable characters"})
    return IdempotencyKey(key, fingerprint(request))


def fingerprint(request: Message) -> bytes:
    """Equal for equal requests of the same method, each of which has a request type of its own."""
    content = request.DESCRIPTOR.full_name.encode() + b"\n"
    content += request.SerializeToString(deterministic=True)
    return sha256(content).digest()
