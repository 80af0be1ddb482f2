"""The keys of an agent of one's own (AGENT_KEYS_FILE), which are kept out of events and logs."""

import json
import sys
from typing import Any, TextIO, cast

# By name. The agent's own process can read them, and so can everything that runs in it.
keys: dict[str, str] = {}


# What is printed in place of each form of a key.
_names: dict[str, str] = {}


def hide(given: dict[str, str]) -> None:
    """Adds keys, and keeps them out of what this process prints."""
    keys.update(given)
    for name, key in given.items():
        # Texts of errors and lines of the log have escapes.
        for form in (key, repr(key)[1:-1]):
            _names.update(dict.fromkeys((json.dumps(form)[1:-1], form), f"[{name}]"))
    sys.stdout = cast("TextIO", _RedactedStream(sys.stdout))
    sys.stderr = cast("TextIO", _RedactedStream(sys.stderr))


def redacted(text: str) -> str:
    """The text with the names of the keys that it contains in place of them."""
    for form, name in _names.items():
        text = text.replace(form, name)
    return text


def without_parts(head: str, tail: str) -> tuple[str, str]:
    """Both sides of a cut without the part of a key that the cut has left there.

    `redacted` finds only whole keys.
    """
    for form in _names:
        for length in range(len(form) - 1, 0, -1):
            if head.endswith(form[:length]):
                head = head[:-length]
                break
        for length in range(len(form) - 1, 0, -1):
            if tail.startswith(form[-length:]):
                tail = tail[length:]
                break
    return head, tail


class _RedactedStream:
    """A stream of text that prints no key."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the redacted text."""
        return self._stream.write(redacted(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
